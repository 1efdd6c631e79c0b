"""The interfaces of other packages on this library's forecasters, for those who come from there."""
