from tests.training.fixtures import one_block  # noqa: F401 a fixture
