"""The page itself, in a headless Chromium: that keys reach the robot, and that everything is there at any width."""

import json

import pytest

from agent.exploring.controls import Control
from tests.agent.exploring.browser import browser, find_browser
from tests.agent.exploring.conftest import serving, settings

CHROMIUM = find_browser()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install -y chromium")
AHEAD = (Control("dx", 1, "ahead", ("KeyD",), "+axis0"), Control("dx", -1, "back", ("KeyA",), "-axis0"))
PLACE = "document.querySelector('#scrub').valueAsNumber"
SOCKETS = """window.sockets = []; window.sent = [];
    window.WebSocket = class extends WebSocket {
        constructor(...how) {
            super(...how);
            window.sockets.push(this);
            this.addEventListener("message", ({ data }) => {
                const length = new DataView(data).getUint32(0, true);
                const head = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
                if (head.tell === "done") window.done = head.n;
            });
        }
        send(text) { window.sent.push(text); super.send(text); }
    };"""
# Whether the last command that was sent is done.
IDLE = "((asked) => !asked.length || asked.at(-1).n === window.done)(sent.map(JSON.parse).filter((each) => each.n))"
GAMEPAD = """window.pad = { connected: true, axes: [0, 0, 0, 0], buttons: Array.from({ length: 17 }, () => ({})) };
    navigator.getGamepads = () => [null, window.pad];"""
CLOCK = "document.querySelector('#clock').textContent"


@pytest.fixture(scope="module")
def page(untrained, tmp_path_factory):
    config = settings(untrained, tmp_path_factory.mktemp("saved"), controls=AHEAD)
    with serving(config) as server, browser(CHROMIUM, tmp_path_factory.mktemp("profile")) as page:
        page.size(1280, 900)
        page.before(SOCKETS)
        page.before(GAMEPAD)
        page.open(f"http://{server.host}/")
        page.wait("document.querySelector('#state')?.textContent.startsWith('Yours')")
        page.wait(f"{CLOCK} === '0.0 of 0.0 s'")
        yield page


def end(page):
    return page.ask("+document.querySelector('#scrub').max")


def settled(page):
    """Until nothing more comes: the dream has caught up."""
    page.wait(f"{PLACE} % 8 === 0")


def test_keys_drive_scrub_and_branch(page):
    """Catches a key that does nothing, one that stays held, and a branch that forgets where it came from."""
    page.press("d", 0.2)
    page.wait(f"{PLACE} >= 8")
    settled(page)
    said = page.wait("document.querySelector('#pace').textContent.replaceAll(' ms', '') ")
    numbers = [int(word.strip(".,;")) for word in said.split() if word.strip(".,;").isdigit()]
    assert len(numbers) == 4 and 0 < numbers[0] < numbers[1], said
    first = end(page)
    assert page.ask(PLACE) == first
    for _ in range(3):
        page.press(",")
    page.wait(f"{PLACE} === {first - 3}")
    assert end(page) == first
    page.press("a", 0.1)
    page.wait("document.querySelectorAll('#branches button').length === 2")
    settled(page)
    assert page.ask("document.querySelector('#branches').textContent").startswith("Branches 1 (")
    page.press(" ")
    page.wait("document.querySelector('.jaws').textContent.startsWith('open')")
    page.press("m")
    page.wait("document.querySelector('#hand').getAttribute('aria-pressed') === 'true'")
    page.press("m")
    assert not page.errors


def test_a_future_is_chosen_by_hand(page):
    """Catches futures that cannot be looked at by whoever has no mouse, and a click that plays nothing."""
    page.press("r")
    page.wait(f"{PLACE} === 0")
    page.ask("document.querySelector('#plan').open = true")
    page.press("m")
    page.wait("document.querySelectorAll('#candidates button').length === 3")
    page.press("m")
    page.wait(IDLE)  # a decision under way would be the last one that is considered
    page.wait("document.querySelectorAll('#candidates button:not(.chosen)').length === 2")
    page.ask("void (sent = [])")
    page.ask("document.querySelector('#candidates button:not(.chosen)').click()")
    page.wait("sent.some((text) => text.includes('play'))")
    begun = json.loads(page.ask("sent.find((text) => text.includes('play'))"))["at"]
    page.wait(f"{PLACE} === {begun + 8} && document.querySelector('#state').textContent.startsWith('Yours')")
    page.ask("document.querySelector('#plan').open = false")
    assert not page.errors


def test_a_gamepad_drives(page):
    """Catches a stick that does nothing, that drives as fast when it is hardly pushed, or that stays pushed."""
    page.press("r")
    page.wait(f"{PLACE} === 0")
    page.ask("window.dispatchEvent(new Event('gamepadconnected'))")
    page.ask("void (sent = [])")
    page.ask("void (pad.axes[0] = 0.6)")
    page.wait("sent.length > 0")
    assert page.ask("JSON.parse(sent[0]).actions[0][0]") == pytest.approx(0.5 * 0.4), "as far as it is pushed"
    page.ask("void (pad.axes[0] = 0)")
    settled(page)
    assert page.ask(PLACE) > 0
    for pressed in ("true", "false"):
        page.ask(f"void (pad.buttons[0].pressed = {pressed})")
        page.wait("document.querySelector('.jaws').textContent.startsWith('open')")
    settled(page)
    page.ask("void (pad.connected = false)")
    assert not page.errors


def test_a_lost_connection_leaves_the_moments(page):
    """Catches a page that begins anew, and forgets what was done, when the network is gone for a moment."""
    page.press("r")
    page.wait(f"{PLACE} === 0")
    page.press("d", 0.1)
    page.wait(f"{PLACE} > 0")
    settled(page)
    before, place = end(page), page.ask(PLACE)
    assert place > 0
    page.ask("sockets.at(-1).close()")
    page.wait("document.querySelector('#state').textContent.startsWith('Connected again')")
    assert page.ask("sockets.length") == 2 and (end(page), page.ask(PLACE)) == (before, place)
    page.press("d", 0.1)
    page.wait(f"{PLACE} > {place}")
    settled(page)
    assert not page.errors


def test_what_is_kept_and_what_is_said(page):
    """Catches a save and a link without a word, and an unknown instruction that nobody is warned of."""
    page.press("d", 0.1)
    page.wait(f"{PLACE} > 0")
    settled(page)
    for button, words in (("save", "Saved"), ("film", "Saved a film")):
        page.ask("document.querySelector('#kept').textContent = ''")
        page.ask(f"document.querySelector('#{button}').click()")
        page.wait(f"document.querySelector('#kept').textContent.startsWith('{words}')")
    page.ask("document.querySelector('#link').click()")
    page.wait("location.hash.length > 50")
    page.wait("document.querySelector('#kept').textContent.includes('link')")
    page.ask("document.querySelector('#instruction').value = 'make coffee'")
    page.press("r")
    page.wait("document.querySelector('#warning').textContent.includes('never trained on')")
    page.wait(f"{PLACE} === 0")
    assert page.ask("location.hash") == ""
    page.ask("document.querySelector('#instruction').value = ''")
    page.press("r")
    page.wait("document.querySelector('#warning').hidden")
    assert not page.errors


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_leaves_the_page(page, width):
    """Catches a page that has to be pushed sideways on a phone, and buttons that no finger meets."""
    page.size(width, 844)
    page.ask("document.querySelectorAll('label').forEach((label) => { label.hidden = false; })")
    page.ask("document.querySelectorAll('select').forEach((each) => { each.append(new Option('long '.repeat(40))); })")
    wide = f"[...document.querySelectorAll('*')].filter((e) => e.getBoundingClientRect().right > {width})"
    assert page.ask(wide + ".map((each) => each.id || each.className || each.tagName)") == []
    covered = """(() => {
      const boxes = [...document.querySelectorAll('header input, header select, header button')]
        .map((each) => each.getBoundingClientRect());
      return boxes.some((a, i) => boxes.slice(i + 1).some((b) =>
        a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom));
    })()"""
    assert not page.ask(covered), "one lies over another"
    smallest = "Math.min(...[...document.querySelectorAll('.pad button')].map((b) => b.getBoundingClientRect().height))"
    assert page.ask(smallest) >= 40
    drawn = """(() => {
      const canvas = document.querySelector('#dream .first');
      return canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some((value) => value > 0);
    })()"""
    assert page.ask(drawn)


def test_a_button_of_the_page_drives(page):
    """Catches a phone, which has no keys, on which nothing moves."""
    before = end(page)
    page.ask("document.querySelector('.pad button').scrollIntoView({ block: 'center' })")
    box = page.ask("(({x, y}) => [x, y])(document.querySelector('.pad button').getBoundingClientRect())")
    x, y = box[0] + 10, box[1] + 10
    page.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, button="left", clickCount=1)
    page.wait(f"+document.querySelector('#scrub').max > {before}")
    page.call("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, button="left", clickCount=1)
    settled(page)
    assert not page.errors
