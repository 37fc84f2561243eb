from tests.heatmaps import assert_maps_are_recorded, oracle


def test_the_reference_draws_the_recorded_maps(golden):
    assert_maps_are_recorded(golden, oracle)
