"""The table of devices, and the bandwidths that data sheets give."""

from deltakv_jax.planning.devices import DEVICES

BANDWIDTHS = {"gfx906": 1024, "gfx90a": 1638, "gfx942": 5300, "h100": 3350, "h200": 4800}


def test_the_bandwidths_are_those_of_the_data_sheets():
    known = {name: one.bandwidth for name, one in DEVICES.items() if one.bandwidth is not None}
    assert known == {name: 1e9 * figure for name, figure in BANDWIDTHS.items()}


def test_every_figure_has_a_source_and_a_platform():
    for name, device in DEVICES.items():
        assert (device.name, bool(device.source)) == (name, True)
        assert device.platform == (
            None if name == "cpu" else "rocm" if name.startswith("gfx") else "cuda"
        )
        assert (device.memory is None) == (device.bandwidth is None) == (name == "cpu")
