"""The five components of a pre-trained model: embedding, encoder, target embedding, decoder, target.

Source: Zhao et al., 2023 (TencentPretrain), arXiv:2212.06385. `_model.assemble(recipe)` puts them together.
"""
