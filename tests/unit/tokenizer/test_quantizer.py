import copy
import math

import pytest
import torch

from tests.small_models import small_tokenizer
from tokenwm.tokenizer.quantizer import (
    FSQ_LEVELS,
    CodebookQuantizer,
    FiniteScalarQuantizer,
    build_quantizer,
)


def clusters(num_clusters: int, batch: int = 8, num_vectors: int = 32) -> torch.Tensor:
    """``(batch, num_vectors, 4)`` latents around a few well separated centres."""
    generator = torch.Generator().manual_seed(0)
    centres = 10.0 * torch.randn(num_clusters, 4, generator=generator)
    which = torch.randint(num_clusters, (batch, num_vectors), generator=generator)
    return centres[which] + 0.1 * torch.randn(batch, num_vectors, 4, generator=generator)


@pytest.mark.parametrize("codebook_size", FSQ_LEVELS)
def test_fsq_levels_multiply_to_the_codebook_size(codebook_size: int) -> None:
    assert math.prod(FSQ_LEVELS[codebook_size]) == codebook_size
    quantizer = build_quantizer("fsq", codebook_size, 99, 0.0)
    assert quantizer.code_dim == len(FSQ_LEVELS[codebook_size])
    every = torch.arange(codebook_size)[None]
    assert len(quantizer.codes_of(every)[0].unique(dim=0)) == codebook_size


@pytest.mark.parametrize("kind", ["fsq", "vq"])
def test_codes_are_those_of_their_indices(kind: str) -> None:
    torch.manual_seed(0)
    quantizer = build_quantizer(kind, 256, 4, 0.25)  # type: ignore[arg-type]
    latents = torch.randn(4, 20, quantizer.code_dim)
    quantizer(latents)  # the first pass initialises the codebook
    codes, indices, loss, places = quantizer.eval()(latents)
    assert indices.shape == (4, 20)
    assert indices.dtype == torch.int64
    assert 0 <= int(indices.min()) <= int(indices.max()) < 256
    assert len(indices.unique()) > 20
    torch.testing.assert_close(codes, quantizer.codes_of(indices), atol=1e-5, rtol=0)
    assert loss.shape == ()
    assert places.shape == codes.shape


@pytest.mark.parametrize("codebook_size", FSQ_LEVELS)
def test_places_are_in_bins_around_the_codes(codebook_size: int) -> None:
    """Even numbers of levels, whose bins lie off zero, and odd ones."""
    torch.manual_seed(0)
    quantizer = build_quantizer("fsq", codebook_size, 0, 0.0).eval()
    quantized = quantizer(3.0 * torch.randn(4, 500, quantizer.code_dim))
    half_width = torch.tensor([levels // 2 for levels in FSQ_LEVELS[codebook_size]])
    torch.testing.assert_close(quantized.places.round(), quantized.codes * half_width)
    assert (quantized.places - quantized.places.round()).abs().max() > 0.49  # not rounded


@pytest.mark.parametrize("kind", ["fsq", "vq"])
def test_gradients_pass_through(kind: str) -> None:
    torch.manual_seed(0)
    quantizer = build_quantizer(kind, 64, 4, 0.25)  # type: ignore[arg-type]
    latents = torch.randn(4, 20, quantizer.code_dim, requires_grad=True)
    quantized = quantizer(latents)
    (quantized.codes * torch.randn_like(quantized.codes)).sum().backward()
    assert latents.grad is not None
    assert latents.grad.isfinite().all()
    assert (latents.grad.abs().amax(-1) > 0).all()


@pytest.mark.parametrize("kind", ["fsq", "vq"])
def test_half_precision_outside_does_not_reach_the_codebook(kind: str) -> None:
    """Not even while its statistics are gathered: training goes on in float32."""
    torch.manual_seed(0)
    inside = build_quantizer(kind, 64, 4, 0.25)  # type: ignore[arg-type]
    outside = copy.deepcopy(inside)
    latents = torch.randn(4, 20, inside.code_dim).bfloat16()
    for _ in range(2):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            got = inside(latents)
        torch.manual_seed(1)
        expected = outside(latents.float())
    assert got.codes.dtype == torch.float32
    assert torch.equal(got.codes, expected.codes)
    assert torch.equal(got.indices, expected.indices)


def test_evaluation_leaves_the_codebook_alone() -> None:
    for kind in ("fsq", "vq"):
        quantizer = build_quantizer(kind, 64, 4, 0.25)  # type: ignore[arg-type]
        quantizer(torch.randn(4, 20, quantizer.code_dim))
        before = {k: v.clone() for k, v in quantizer.state_dict().items()}
        quantizer.eval()(100.0 * torch.randn(4, 20, quantizer.code_dim))
        assert all(torch.equal(before[k], v) for k, v in quantizer.state_dict().items())


def test_the_codebook_starts_at_the_data() -> None:
    """K-means: codes lie on the clusters after one pass, whatever the latents' scale."""
    torch.manual_seed(0)
    quantizer = CodebookQuantizer(8, 4, 0.25)
    latents = clusters(6)
    quantizer(latents)
    codes = quantizer.eval()(latents).codes
    assert (codes - latents).norm(dim=-1).median() < 1.0  # clusters are about 20 apart


def test_a_dead_code_is_revived() -> None:
    torch.manual_seed(0)
    quantizer = CodebookQuantizer(8, 4, 0.25)
    latents = clusters(8)
    quantizer(latents)
    book = quantizer.vq._codebook
    with torch.no_grad():
        book.embed[:, 3] = 1e4  # far from everything: nobody will choose it
        book.embed_avg[:, 3] = 1e4
        book.cluster_size[:, 3] = 0.0
    assert float(book.embed[:, 3].abs().max()) == 1e4
    quantizer(latents)
    assert float(book.embed[:, 3].abs().max()) < 100.0
    assert (quantizer.eval()(latents).indices == 3).any()


def test_commitment_pulls_latents_to_their_codes() -> None:
    torch.manual_seed(0)
    quantizer = CodebookQuantizer(4, 4, commitment_weight=0.5)
    latents = clusters(4)
    quantizer(latents)
    with torch.no_grad():
        book = quantizer.vq._codebook
        nearest = torch.cdist(latents.flatten(0, 1), book.embed[0]).amin(1)
        expected = 0.5 * nearest.square().mean() / 4  # mean over the 4 dimensions
    torch.testing.assert_close(quantizer(latents).commitment_loss, expected, rtol=1e-3, atol=1e-6)


def test_frames_that_hardly_differ_still_use_many_codes() -> None:
    """What the BatchNorm is for: without it FSQ gives all of them one code."""
    torch.manual_seed(0)
    tokenizer = small_tokenizer("fsq")
    # Grey pictures that differ by a noise of one level in 256.
    frames = torch.randint(128, 130, (16, 1, 16, 16, 3), dtype=torch.uint8)
    for _ in range(5):
        indices = tokenizer(frames).indices
    assert len(indices.unique()) > 10

    latents = tokenizer.encoder(tokenizer.normalize(frames)).flatten(2).transpose(1, 2)
    assert isinstance(tokenizer.quantizer, FiniteScalarQuantizer)
    assert len(tokenizer.quantizer.fsq(latents)[1].unique()) <= 2
