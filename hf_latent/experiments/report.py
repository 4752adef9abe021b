"""`hf-latent report`: one HTML page of a training, or of several side by side."""

from dataclasses import dataclass
from pathlib import Path

from hf_latent.command import Settings
from hf_latent.evaluation.inspection.comparison import distinct_names
from hf_latent.lock import locks_output
from hf_latent.output import check_output_file, write_text
from hf_latent.training.page.page import PAGE, render_page
from hf_latent.training.page.record import read_run


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Settings):
    """Make one HTML page of a training, or of several side by side.

    It has the settings, curves, pictures, a diagnosis and the next command. A training writes the
    page of its own run at each validation, as report.html in its folder.

    Attributes:
        run: The folder of a training, finished or not. Or several, as in --run A B C.
        output: The page to write.
    """

    run: list[str] | str
    output: str = PAGE


@locks_output
def report(config: ReportConfig) -> Path:
    """Write the page, and return its path.

    Raises:
        UserError: if a folder is not of a training or is damaged, or the page cannot be written.
    """
    output = Path(config.output)
    check_output_file(output)
    given = config.run if isinstance(config.run, list) else [config.run]
    runs = [read_run(Path(x), name) for name, x in distinct_names(given, "run").items()]
    write_text(output, render_page(runs))
    print(f"a page of {', '.join(run.name for run in runs)}: {output}")
    return output
