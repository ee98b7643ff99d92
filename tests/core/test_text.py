from hypothesis import given
from hypothesis import strategies as st

from multispin.core.text import TextStream


@given(
    st.text(max_size=60), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3), st.data()
)
def test_any_portions_give_the_text_before_the_first_stop(
    text: str, stop: list[str], data: st.DataObject
) -> None:
    encoded = text.encode()
    stream = TextStream(stop)
    shown = ""
    at = 0
    while at < len(encoded):
        step = data.draw(st.integers(1, 7))
        shown += stream.push(encoded[at : at + step])
        at += step
        # Nothing that was shown is ever taken back.
        assert text.startswith(shown)
        assert all(s not in shown for s in stop)
    shown += stream.push(b"", final=True)
    ends = [text.find(s) for s in stop if s in text]
    assert stream.stopped == bool(ends)
    # Read a byte at a time, the stop that is complete first wins; it never shows any of them.
    if not ends:
        assert shown == text
    else:
        assert all(s not in shown for s in stop)


def test_the_beginning_of_a_stop_is_held_back() -> None:
    stream = TextStream(["END"])
    assert stream.push(b"the EN") == "the "
    assert stream.push(b"Tity E") == "ENTity "
    assert stream.push(b"ND of it") == ""
    assert stream.stopped


def test_half_a_character_waits() -> None:
    stream = TextStream()
    data = "é".encode()
    assert stream.push(data[:1]) == ""
    assert stream.push(data[1:]) == "é"
    assert stream.push(b"\xc3", final=True) == "\ufffd"
