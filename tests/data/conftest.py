"""A separate cache for `datasets`, so that tests neither read nor fill the user's."""

import datasets
import pytest


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory):
    cache = tmp_path_factory.mktemp("datasets_cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        yield cache
