"""The learned methods: their settings, their training, and the artefacts that it leaves."""
