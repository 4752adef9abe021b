import datasets
import pytest

from hf_latent.data.quiet import quiet_datasets


@pytest.fixture
def shown_bars():
    were_hidden = datasets.are_progress_bars_disabled()
    datasets.enable_progress_bars()
    yield
    if were_hidden:
        datasets.disable_progress_bars()


@pytest.mark.usefixtures("shown_bars")
def test_hides_and_restores_progress_bars():
    with pytest.raises(KeyError), quiet_datasets():
        assert datasets.are_progress_bars_disabled()
        raise KeyError
    assert not datasets.are_progress_bars_disabled()


@pytest.mark.usefixtures("shown_bars")
def test_leaves_hidden_bars_hidden():
    datasets.disable_progress_bars()
    with quiet_datasets():
        pass
    assert datasets.are_progress_bars_disabled()
    datasets.enable_progress_bars()
