"""What a training run has left, for those who go on from there."""

from pathlib import Path

from llmhalluc.extras.errors import UserError
from llmhalluc.train.base import MERGED, RECORD


def final_model(output_dir: str | Path) -> Path:
    """The folder to load from: the merged model of an adapter's run, else `output_dir` itself.

    Raises UserError when no run has finished there.
    """
    output_dir = Path(output_dir).expanduser()
    if not (output_dir / RECORD).is_file():
        raise UserError(f"{output_dir} holds no finished training run: train it, or resume with train.resume=true")
    return output_dir / MERGED if (output_dir / MERGED).is_dir() else output_dir
