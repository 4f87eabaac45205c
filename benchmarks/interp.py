"""The packed ablation scan against the naive loop: one forward a component, of the text up to the event.

A model of SmolLM2-135M's shape with fresh weights (other shapes by flags). Checks that both give the same numbers,
counts the tokens that each feeds, and prints how many times fewer, and how much less processor time, both measured in
turn. The last but one column is of a naive loop that also feeds what comes after the event.
Usage: python benchmarks/interp.py [--layers 30] [--width 576] [--prefix 256] [--after 100] [--rounds 2]
                                   [--methods 1 4] [--dtype float32]
"""

import argparse
import time
from statistics import median

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmhalluc.interp.packed import Copy, Edit, change_at, forward, forward_tokens, rows_of
from llmhalluc.interp.sites import Sites


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--prefix", type=int, default=256, help="tokens up to the event")
    parser.add_argument("--after", type=int, default=100, help="tokens of the completion after it")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--methods", type=int, nargs="+", default=[1, 4], help="ways of taking out, in one pass")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    given = parser.parse_args()
    sites = Sites(fresh_model(given))
    ids = torch.randint(given.vocabulary, (given.prefix,), generator=torch.Generator().manual_seed(0)).tolist()
    rows, row = rows_of(ids[:1], ids[1:], None, "soft"), given.prefix - 1
    seconds: dict[str, list[float]] = {"naive": [], **{str(count): [] for count in given.methods}}
    for _ in range(given.rounds):
        for count in given.methods:
            copies = copies_of(sites, row, count)
            start = time.process_time()
            packed = forward(sites, rows, copies).logits
            seconds[str(count)].append(time.process_time() - start)
        start = time.process_time()
        naive = torch.stack([naive_logits(sites, ids, row, copy.edits) for copy in copies_of(sites, row, 1)])
        seconds["naive"].append(time.process_time() - start)
        if count == given.methods[-1]:
            worst = float((packed[: len(naive)] - naive).abs().max())
    forwards = 1 + len(sites.components)
    shape = f"{given.layers} layers of width {given.width}, prefix {given.prefix}, {given.dtype}"
    print(f"{shape}; largest difference {worst:.1e}")
    print(
        "| ways in one pass | tokens, packed | naive | times fewer | than over the whole text | CPU, naive / packed |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for count in given.methods:
        fed, forwards = forward_tokens(copies_of(sites, row, count)), 1 + count * len(sites.components)
        # A naive forward costs the same whatever it takes out, so other ways are as many more of them.
        cost = median(seconds["naive"]) * forwards / (1 + len(sites.components)) / median(seconds[str(count)])
        until, whole = forwards * given.prefix, forwards * (given.prefix + given.after)
        print(f"| {count} | {fed:,} | {until:,} | {until / fed:.1f} | {whole / fed:.1f} | {cost:.1f} |")


def fresh_model(given: argparse.Namespace) -> torch.nn.Module:
    heads = max(1, given.width // 64)
    config = AutoConfig.for_model(
        "llama", hidden_size=given.width, intermediate_size=given.width * 8 // 3, num_hidden_layers=given.layers,
        num_attention_heads=heads, num_key_value_heads=max(1, heads // 3), vocab_size=given.vocabulary,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, given.dtype)).eval()


def copies_of(sites: Sites, row: int, ways: int) -> list[Copy]:
    """The row as it is, and without each component, scaled in so many ways; the first way takes it out."""
    edits = [Edit(site, way / ways) for way in range(ways) for site in sites.components]
    return [Copy(row), *(Copy(row, (edit,)) for edit in edits)]


@torch.inference_mode()
def naive_logits(sites: Sites, ids: list[int], row: int, edits: tuple[Edit, ...]) -> torch.Tensor:
    """Logits (V) after the text up to the row, in a forward of its own; of the last row alone, as is fair."""
    changes = {edit.site: change_at((0, [row]), [edit], sites, ()) for edit in edits}
    with sites.hooked(changes):
        return sites.model(input_ids=torch.tensor([ids]), use_cache=False, logits_to_keep=1).logits[0, -1]


if __name__ == "__main__":
    main()
