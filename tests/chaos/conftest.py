from tests.training.conftest import one_block  # noqa: F401 a fixture
