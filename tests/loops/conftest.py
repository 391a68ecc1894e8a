import pytest

from tests.loops.training import make_trainer


@pytest.fixture(scope="session")
def unstopped(tmp_path_factory):
    """The directory and the outcome of a run that nothing happens to, by strategy."""
    runs = {}

    def get(strategy):
        replicas = strategy.num_replicas_in_sync
        if replicas not in runs:
            run_dir = tmp_path_factory.mktemp("unstopped")
            runs[replicas] = run_dir, make_trainer(strategy, run_dir).run()
        return runs[replicas]

    return get
