"""The verbs, in the groups and the order in which `latentddm --help` lists them.

One more verb: a file here that defines VERB, and its module in one of these groups.
"""

from __future__ import annotations

from latentddm.cli import (
    completion,
    decode,
    demo,
    distill,
    ema,
    encode,
    evaluate,
    evaluate_autoencoder,
    export,
    import_latents,
    play,
    sample,
    train,
    train_autoencoder,
    verify,
)
from latentddm.cli.verb import Verb

GROUPS: dict[str, tuple[Verb, ...]] = {
    "begin here": (demo.VERB,),
    "images to latents": (
        train_autoencoder.VERB,
        evaluate_autoencoder.VERB,
        encode.VERB,
        import_latents.VERB,
        verify.VERB,
    ),
    "train": (train.VERB, distill.VERB),
    "use a run": (sample.VERB, ema.VERB, decode.VERB, evaluate.VERB, play.VERB, export.VERB),
    "this program": (completion.VERB,),
}
VERBS: tuple[Verb, ...] = tuple(verb for verbs in GROUPS.values() for verb in verbs)
