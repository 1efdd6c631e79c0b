"""Recipes of tiny random pipelines that make videos or sounds: data, by the class of the pipeline."""

from __future__ import annotations

from experiments.backends.tiny.components import FLOW, QWEN, ROPE, SHIFTED, T5, WIDTH, Recipe, component, decoder

__all__ = ["FILMS"]

WAN_TRANSFORMER = component(
    "WanTransformer3DModel",
    patch_size=(1, 2, 2),
    num_attention_heads=2,
    attention_head_dim=12,
    in_channels=16,
    out_channels=16,
    text_dim=WIDTH,
    freq_dim=32,
    ffn_dim=32,
    num_layers=3,
    cross_attn_norm=True,
    qk_norm="rms_norm_across_heads",
    rope_max_seq_len=32,
)
WAN = {
    "tokenizer": component("t5_tokenizer"),
    "text_encoder": component(
        "UMT5EncoderModel", vocab_size=128, d_model=WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4, pad_token_id=0
    ),
    "vae": component(
        "AutoencoderKLWan",
        base_dim=4,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    ),
    "scheduler": component(
        "UniPCMultistepScheduler", prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    ),
    "transformer": WAN_TRANSFORMER,
}

FILMS: dict[str, Recipe] = {
    "WanPipeline": Recipe(parts=WAN, call={"height": 16, "width": 16, "num_frames": 9, "max_sequence_length": 16}),
    "LTXPipeline": Recipe(
        parts={
            **T5,
            "scheduler": SHIFTED,
            "vae": component(
                "AutoencoderKLLTXVideo",
                latent_channels=8,
                block_out_channels=(8, 8, 8, 8),
                decoder_block_out_channels=(8, 8, 8, 8),
                layers_per_block=(1, 1, 1, 1, 1),
                decoder_layers_per_block=(1, 1, 1, 1, 1),
                spatio_temporal_scaling=(True, True, False, False),
                decoder_spatio_temporal_scaling=(True, True, False, False),
                patch_size=1,
                patch_size_t=1,
                encoder_causal=True,
                decoder_causal=False,
            ),
            "transformer": component(
                "LTXVideoTransformer3DModel",
                in_channels=8,
                out_channels=8,
                num_attention_heads=4,
                attention_head_dim=8,
                cross_attention_dim=32,
                num_layers=3,
                caption_channels=WIDTH,
            ),
        },
        call={"height": 32, "width": 32, "num_frames": 9, "max_sequence_length": 16},
    ),
    "CogVideoXPipeline": Recipe(
        parts={
            **T5,
            "scheduler": component("CogVideoXDDIMScheduler"),
            "vae": component(
                "AutoencoderKLCogVideoX",
                block_out_channels=(8, 8, 8, 8),
                latent_channels=4,
                layers_per_block=1,
                norm_num_groups=2,
                temporal_compression_ratio=4,
            ),
            "transformer": component(
                "CogVideoXTransformer3DModel",
                num_attention_heads=4,
                attention_head_dim=8,
                in_channels=4,
                out_channels=4,
                time_embed_dim=8,
                text_embed_dim=WIDTH,
                num_layers=3,
                sample_width=4,
                sample_height=4,
                sample_frames=9,
                patch_size=2,
                temporal_compression_ratio=4,
                max_text_seq_length=16,
            ),
        },
        call={"height": 32, "width": 32, "num_frames": 9, "max_sequence_length": 16},
    ),
    "HunyuanVideo15Pipeline": Recipe(
        parts={
            **QWEN,
            "text_encoder": decoder("Qwen2_5_VLTextModel", rope_parameters=ROPE, bos_token_id=0, eos_token_id=1),
            "text_encoder_2": T5["text_encoder"],
            "tokenizer_2": component("byte_tokenizer"),
            "scheduler": FLOW,
            "guider": component("ClassifierFreeGuidance", guidance_scale=6.0),
            "vae": component(
                "AutoencoderKLHunyuanVideo15",
                latent_channels=4,
                block_out_channels=(16, 16, 16),
                layers_per_block=1,
                spatial_compression_ratio=4,
                temporal_compression_ratio=4,
            ),
            "transformer": component(
                "HunyuanVideo15Transformer3DModel",
                in_channels=9,
                out_channels=4,
                num_attention_heads=2,
                attention_head_dim=16,
                num_layers=3,
                num_refiner_layers=1,
                mlp_ratio=2.0,
                patch_size=1,
                patch_size_t=1,
                text_embed_dim=WIDTH,
                text_embed_2_dim=WIDTH,
                image_embed_dim=12,
                rope_axes_dim=(4, 6, 6),
                target_size=16,
                task_type="t2v",
            ),
        },
        call={"height": 16, "width": 16, "num_frames": 5},
        attributes={
            "tokenizer_max_length": 32,
            "tokenizer_2_max_length": 16,
            "prompt_template_encode_start_idx": 4,
            "system_message": "",
            "vision_num_semantic_tokens": 4,
            "vision_states_dim": 12,
        },
    ),
    "StableAudioPipeline": Recipe(
        parts={
            **T5,
            "scheduler": component(
                "EDMDPMSolverMultistepScheduler",
                solver_order=2,
                prediction_type="v_prediction",
                sigma_data=1.0,
                sigma_schedule="exponential",
            ),
            "projection_model": component(
                "StableAudioProjectionModel",
                text_encoder_dim=WIDTH,
                conditioning_dim=16,
                min_value=0,
                max_value=32,
            ),
            "vae": component(
                "AutoencoderOobleck",
                encoder_hidden_size=8,
                downsampling_ratios=[2, 4],
                channel_multiples=[1, 2],
                decoder_channels=8,
                decoder_input_channels=4,
                audio_channels=2,
                sampling_rate=8000,
            ),
            "transformer": component(
                "StableAudioDiTModel",
                sample_size=64,
                in_channels=4,
                out_channels=4,
                num_layers=3,
                attention_head_dim=8,
                num_attention_heads=4,
                num_key_value_attention_heads=2,
                cross_attention_dim=16,
                time_proj_dim=16,
                global_states_input_dim=32,
                cross_attention_input_dim=16,
            ),
        },
        call={"audio_end_in_s": 0.05},
    ),
}
