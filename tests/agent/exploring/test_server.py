"""The protocol, by a client in Python against a real server with an untrained checkpoint and a small made-up world."""

import json
import re
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from socket import create_connection

import av
import cv2
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from agent.exploring.server import FULL, PAGE, REFUSED, TAKEN_OVER, Door
from agent.exploring.session import Session
from agent.exploring.timeline import Timeline
from agent.exploring.worlds import FILM_PACE
from envs.data.store import EpisodeStore
from tests.agent.conftest import save_untrained
from tests.agent.exploring.conftest import Client, Kept, push, serving, settings

LOOK = 8  # control steps of the checkpoint's model step


def named(head, files):
    """World and camera -> the picture's file."""
    return {(p["world"], p["camera"]): file for p, file in zip(head["pictures"], files, strict=True)}


def brightness(file):
    """Of a picture of one grey, which is the count of control steps."""
    return int(np.median(cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)))


def test_the_page_learns_what_the_robot_takes(client):
    """Catches a page that has to know the robot."""
    hello = client.hello
    assert hello["rest"] == [0, 0, 0, 0, 0, 0, -1] and hello["grippers"] == [[6, -1.0, 1.0]]
    assert (hello["look"], hello["hz"], hello["cameras"]) == (LOOK, 20, ["main", "wrist"])
    assert hello["policies"] == ["planner", "model"] and len(hello["controls"]) == 12


def test_another_task_and_another_checkpoint(untrained, tmp_path):
    """Catches a choice that shows the task or the checkpoint of before, and a wrong one that ends the page."""
    strided = save_untrained(tmp_path / "other", (2, 4))
    page = settings(untrained, tmp_path, checkpoints=(str(strided), str(tmp_path / "gone")))
    other = replace(page.env, name="more", instruction="lift it again")
    with serving(replace(page, tasks=(other,))) as server:
        with server.client() as client:
            first = client.hello
            assert first["choices"] == {"task": ["kept-v0", "more"], "checkpoint": ["checkpoint", "other", "gone"]}
            assert first["chosen"] == {"task": "kept-v0", "checkpoint": "checkpoint"}
            assert "one look only" in client.complaint("start", seed=3, split="seen", scene_look=1)
        with server.client("?task=more&checkpoint=other") as client:
            assert client.hello["chosen"] == {"task": "more", "checkpoint": "other"}
            assert client.hello["checkpoint"] != first["checkpoint"]
            client.start()
            assert client.moments("let", at=0, who="planner")[-1][0]["step"] == 2
        for wrong in ("task=none", "checkpoint=gone"):
            with connect(f"ws://{server.host}/socket?{wrong}", max_size=None) as socket:
                client = Client(socket)
                assert client.receive()[0]["tell"] == "error" and client.receive()[0]["chosen"] == first["chosen"]


def test_both_worlds_go_on_together(client):
    """Catches a dream that is shown before it has looked, and drift that is told of two different times."""
    start = client.start()
    assert start["id"] == 0 and start["fresh"] and start["drift"]["gripper"] == pytest.approx(0, abs=1e-4)
    told = client.moments("act", at=0, actions=push(steps=LOOK - 1))
    assert [head["id"] for head, _ in told] == list(range(1, LOOK)) and not any(head["fresh"] for head, _ in told)
    assert all(not named(*each) for each in told[:-1]), "drawn although nobody looks"
    assert list(named(*told[-1])) == [("real", "main")]
    (head, files), (seen, _) = client.ask("act", at=LOOK - 1, actions=push())
    assert head["fresh"] and head["step"] == LOOK and head["dream"]["uncertainty"] > 0
    assert (seen["tell"], seen["id"]) == ("seen", head["id"]) and seen["seen"]["value"] > 0
    assert {"gripper", "objects"} == head["drift"].keys()
    assert set(named(head, files)) == {(w, c) for w in ("real", "dream") for c in ("main", "wrist")}
    assert brightness(named(head, files)["real", "main"]) == LOOK


def test_a_branch_is_what_it_would_have_been(client):
    """Catches a world that is not put back: whatever was tried in between must leave no trace in a branch."""
    client.start()
    client.moments("act", at=0, actions=push(0.5, 10))
    branched = client.moments("act", at=3, actions=push(-0.5, 13))
    loads = Kept.loads
    again = client.moments("act", at=branched[0][0]["id"], actions=push(-0.5, 12))
    assert Kept.loads == loads + 1
    assert branched[0][0]["parent"] == 3 and branched[-1][0]["step"] == 16
    client.start()
    client.moments("act", at=0, actions=push(0.5, 3))
    alone = client.moments("act", at=3, actions=push(-0.5, 13))
    for other in (branched, again):
        assert other[-1][1] == alone[-1][1], "the pictures differ"
        for what in ("dream", "seen", "drift", "real"):
            assert other[-1][0][what] == alone[-1][0][what]


def test_a_passed_moment_can_be_looked_at(client):
    """Catches a time line that shows the picture of another moment."""
    client.start()
    client.moments("act", at=0, actions=push(steps=6))
    for at in (2, 5, 0):
        ((head, files),) = client.ask("look", at=at)
        assert head["id"] == at and brightness(files[0]) == at


def test_a_link_leads_to_the_same_pictures(server, client):
    """Catches a link that forgets an action, the look or the instruction: what it leads to would be another moment."""
    client.start(instruction="lift the cube")
    rng = np.random.default_rng(0)
    told = client.moments("act", at=0, actions=rng.uniform(-1, 1, (16, 7)).clip(-0.9).tolist())
    told = client.moments("act", at=11, actions=rng.uniform(-1, 1, (13, 7)).clip(-0.9).tolist())
    last, files = told[-1]
    ((linked, _),) = client.ask("link", at=last["id"])
    with server.client() as other:
        again, same = other.moments("restore", link=linked["link"])[-1]
        assert same == files and again["step"] == last["step"] == 24
        assert all(again[name] == last[name] for name in ("dream", "seen", "drift"))
        damaged = linked["link"][:-8] + "AAAAAAAA"
        assert "this link" in other.complaint("restore", link=damaged)


def test_a_saved_episode_is_an_ordinary_one(server, client):
    """Catches an episode whose pictures are of other moments than its actions, labels that nobody meant, and a name
    that the page could choose."""
    client.start()
    client.moments("act", at=0, actions=push(0.5, 3))
    moments = client.moments("let", at=3, who="model")
    at = moments[-1][0]["id"]
    store, before = EpisodeStore(server.config.out), set(EpisodeStore(server.config.out).names())
    ((plain, _),) = client.ask("save", at=at, name="../../elsewhere")
    ((shown, _),) = client.ask("save", at=at, demonstration=True)
    assert set(store.names()) - before == {plain["name"], shown["name"]}
    episode, demonstration = store.read(plain["name"]), store.read(shown["name"])
    assert (episode.source, episode.split, episode.seed, len(episode)) == ("human", "seen", 3, 5)
    np.testing.assert_array_equal(episode.images["main"][:, 0, 0, 0], range(6))
    np.testing.assert_array_equal(episode.action[:3], np.array(push(0.5, 3), np.float32))
    assert np.isnan(episode.expert).all()
    np.testing.assert_array_equal(demonstration.expert[:3], episode.action[:3])
    assert np.isnan(demonstration.expert[3:]).all(), "what the model did is no demonstration"


def test_a_film_shows_both_worlds(client, server, tmp_path):
    """Catches a film that lacks the branch's way, or one world, and what a film that is not wanted leaves behind."""
    client.start()
    client.moments("act", at=0, actions=push(steps=6))
    client.moments("act", at=3, actions=push(-0.5, 5))
    told = client.ask("film", at=11)
    filmed, before = told[-1][0], set(Path(server.config.out).iterdir())
    assert (filmed["tell"], filmed["steps"]) == ("filmed", 8)
    with av.open(str(Path(server.config.out) / filmed["name"])) as container:
        rate = container.streams.video[0].average_rate
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 8 // FILM_PACE + 1 and rate == 20 // FILM_PACE
    view = frames[0].shape[1] // 2
    worlds = [[float(half[100:300].mean()) for half in np.split(frame, [view], axis=1)] for frame in frames]
    real, dream = zip(*worlds, strict=True)
    assert np.allclose(real, range(0, 9, FILM_PACE), atol=2), "the branch's moments, which grow brighter by the step"
    assert np.ptp(dream[:-1]) < 1 < abs(dream[-1] - dream[0]), "the dream stands still until it looks"
    end = client.moments("act", at=11, actions=push(steps=16))[-1][0]["id"]
    asked = client.tell(do="film", at=end)
    client.tell(do="stop")
    assert not [head for head, _ in client.until_done(asked) if head["tell"] in ("filmed", "error")]
    assert set(Path(server.config.out).iterdir()) == before


@pytest.mark.parametrize("who", ["planner", "model"])
def test_a_policy_acts_and_is_taken_over_from(client, who):
    """Catches a policy that is asked of another moment, or whose plan the person's own actions are taken for."""
    client.start()
    first = client.ask("let", at=0, who=who, candidates=True)
    plans = [each for each in first if each[0]["tell"] == "plan"]
    assert len(plans) == (who == "planner")
    for head, files in plans:
        assert len(files) == len(head["candidates"]) == head["of"] == 3
        scores = [candidate["score"] for candidate in head["candidates"]]
        assert scores == sorted(scores, reverse=True)
        assert sum(c["chosen"] for c in head["candidates"]) == sum(c["own"] for c in head["candidates"]) == 1
        assert head["steps"] == LOOK, "the whole candidate can be played, not what is executed of it"
    at = first[-1][0]["id"]
    assert at == 2 and first[-1][0]["by"] == who
    at = client.moments("act", at=at, actions=push(steps=7))[-1][0]["id"]
    told = client.moments("let", at=at, who=who)
    assert told[-1][0]["step"] == 11
    again = client.moments("let", at=at, who=who)
    assert [head["action"] for head, _ in again] == [head["action"] for head, _ in told]


def test_an_unknown_instruction_is_warned_of(client):
    """Catches a box that takes any words as if the model knew them."""
    warned, *_ = client.ask("start", seed=0, split="seen", instruction="make coffee")
    assert "never trained on “make coffee”" in warned[0]["warning"] and "“lift the cube”" in warned[0]["warning"]
    plain, *_ = client.ask("start", seed=0, split="seen", instruction="")
    assert plain[0]["warning"] is None and plain[0]["instruction"] == "lift the cube"


RUBBISH = [
    "", "{", "[]", "null", '"start"', "{}", "[" * 100_000, '{"do": 3}', '{"do": "rm"}', '{"do": "act"}',
    *(f'{{"do": "act", "at": {at}, "actions": {actions}}}' for at, actions in (
        (-1, []), (99, push()), ("true", []), (0, []), (0, [[1, 2]]), (0, "[[NaN, 0, 0, 0, 0, 0, 0]]"),
        (0, "[[1e999, 0, 0, 0, 0, 0, 0]]"), (0, '[["1", 0, 0, 0, 0, 0, 0]]'), (0, f'"{"x" * 300_000}"'),
    )),
    '{"do": "let", "at": 0, "who": "nobody"}', '{"do": "let", "at": 0}', '{"do": "save", "at": 0}',
    '{"do": "start", "seed": 1, "split": "nowhere"}', '{"do": "start", "seed": -1, "split": "seen"}',
    '{"do": "start", "seed": 1e3, "split": "seen"}', '{"do": "restore", "link": "%%%"}',
    '{"do": "restore", "link": "eJw"}', f'{{"do": "start", "seed": 1, "split": "seen", "instruction": "{"x" * 300}"}}',
]  # fmt: skip


@pytest.mark.parametrize("text", RUBBISH, ids=[text[:50] for text in RUBBISH])
def test_rubbish_is_answered_on_the_page(client, text):
    """Catches a message that ends the server, or the episode under way."""
    client.start()
    client.socket.send(text)
    head, _ = client.receive()
    assert head["tell"] == "error" and 10 < len(head["text"]) < 500
    assert "something is wrong with the server" not in head["text"]
    if text.startswith('{"do"') and len(text) < 1000 and "NaN" not in text and '"do": 3' not in text:
        assert client.receive()[0]["tell"] == "done"
    assert client.moments("act", at=0, actions=push())[-1][0]["id"] == 1


def test_bytes_and_what_is_far_too_large(server):
    """Catches a message that fills the memory before anybody looks at it."""
    with server.client() as client:
        client.socket.send(b"\x00" * 100)
        assert client.receive()[0]["tell"] == "error"
        with pytest.raises(ConnectionClosed):
            client.socket.send("x" * 2**21)
            client.socket.recv(timeout=20)
        assert client.socket.close_code == 1009
    with server.client() as client:
        assert client.start()["id"] == 0


def test_a_fault_of_the_simulator_is_told_and_left_behind(client, capfd):
    """Catches a world that stays broken, or an error whose inside is shown to whoever asks."""
    client.start()
    text = client.complaint("act", at=0, actions=[[0, -1, 0, 0, 0, 0, -1]])
    assert text == "something is wrong with the server: its terminal says what"
    assert "RuntimeError: broken" in capfd.readouterr().err
    head, files = client.moments("act", at=0, actions=push())[-1]
    assert head["id"] == 1 and brightness(files[0]) == 1


def test_a_candidate_is_a_film(tmp_path):
    """Catches a film that shows its end alone, although the model can say what lies between."""
    config = settings(save_untrained(tmp_path / "checkpoint", (2, 4)), tmp_path)
    with serving(config) as server, server.client() as client:
        client.start()
        told = client.ask("let", at=0, who="planner", candidates=True)
        (head,) = [head for head, _ in told if head["tell"] == "plan"]
        films = [(picture["candidate"], picture["frame"]) for picture in head["pictures"]]
        assert films == [(i, k) for i in range(3) for k in range(LOOK // FILM_PACE)]


def test_a_future_that_was_considered_is_played(client):
    """Catches a candidate that is played as another one, or from where the planner has gone meanwhile."""
    client.start()
    told = client.ask("let", at=0, who="planner", candidates=True)
    (plan,) = [head for head, _ in told if head["tell"] == "plan"]
    taken = [head["action"] for head, _ in told if head["tell"] == "moment"]
    chosen = [candidate["chosen"] for candidate in plan["candidates"]].index(True)
    for candidate in range(len(plan["candidates"])):
        played = client.moments("play", at=0, candidate=candidate)
        assert played[0][0]["parent"] == 0 and [head["step"] for head, _ in played] == list(range(1, LOOK + 1))
        assert {head["by"] for head, _ in played} == {"candidate"} and played[-1][0]["fresh"]
        assert (taken == [head["action"] for head, _ in played[:2]]) == (candidate == chosen)
        assert sum(("real", "main") in named(*each) for each in played) == LOOK / 2, "not its end alone"
    assert "from 0 to 2" in client.complaint("play", at=0, candidate=3)
    assert "let the planner act from there" in client.complaint("play", at=1, candidate=0)
    client.start()
    assert "forgotten" in client.complaint("play", at=0, candidate=0)


def test_a_tab_that_is_closed_in_the_middle_of_a_plan(server):
    """Catches a plan whose listener is gone and that takes the server with it, or keeps its turn for ever."""
    with server.client() as client:
        client.start()
        client.tell(do="let", at=0, who="planner", candidates=True)
    with server.client() as other:
        assert other.start()["id"] == 0
        assert other.moments("let", at=0, who="planner")[-1][0]["step"] == 2


def test_a_lost_connection_goes_on_where_it_was(server):
    """Catches an hour of demonstrations that is gone with a moment's network, a world that what was under way then left
    elsewhere, and moments that a stranger gets."""
    with server.client() as client:
        client.start()
        client.moments("act", at=0, actions=push(steps=3))
        client.tell(do="let", at=3, who="planner")
        assert not client.hello["resumed"]
    with server.client(f"?session={client.hello['session']}") as again:
        assert again.hello["resumed"] and again.hello["session"] == client.hello["session"]
        told = again.moments("act", at=3, actions=push(-0.5, 5))[-1]
        with server.client(f"?session={again.hello['session']}") as other, pytest.raises(ConnectionClosed):
            assert other.hello["resumed"]
            again.receive()  # a connection of which nobody had noticed that it is dead
        assert again.socket.close_code == TAKEN_OVER
    with server.client("?session=another") as alone:
        assert not alone.hello["resumed"] and "no episode yet" in alone.complaint("act", at=3, actions=push())
        alone.start()
        alone.moments("act", at=0, actions=push(steps=3))
        same = alone.moments("act", at=3, actions=push(-0.5, 5))[-1]
    assert told[1] == same[1] and all(told[0][name] == same[0][name] for name in ("step", "dream", "seen", "drift"))


def test_who_is_away_makes_room(server):
    """Catches closed tabs that keep others out, and their moments from ever being freed."""
    names = []
    for seed in range(server.config.viewers + 1):
        with server.client() as client:
            client.start(seed=seed)
            names.append(client.hello["session"])
    for name, here in ((names[0], False), (names[-1], True)):
        with server.client(f"?session={name}") as client:
            assert client.hello["resumed"] == here


def test_stop_ends_what_takes_long(server, client):
    """Catches a stop that waits its turn behind what it is to end."""
    client.start()
    for at in range(0, 160, 16):
        client.moments("act", at=at, actions=push(0.1, 16))
    ((linked, _),) = client.ask("link", at=160)
    number = client.tell(do="restore", link=linked["link"])
    client.socket.send('{"do": "stop"}')
    told = client.until_done(number)
    assert [head for head, _ in told if head["tell"] == "moment"][-1]["step"] < 160


def test_messages_that_come_too_fast_are_dropped(client):
    """Catches an inbox that grows without end."""
    client.start()
    for number in range(400):
        client.socket.send(json.dumps({"do": "look", "at": 0, "n": 1000 + number}))
    client.socket.send(json.dumps({"do": "stop"}))
    end, told = time.monotonic() + 60, []
    while time.monotonic() < end and not any(head["tell"] == "error" for head in told):
        told.append(client.receive()[0])
    assert "faster than they can be carried out" in next(h["text"] for h in told if h["tell"] == "error")
    while True:  # what was taken in is still answered
        try:
            client.socket.recv(timeout=1)
        except TimeoutError:
            break
    assert client.start()["id"] == 0


def test_a_time_line_has_an_end(client, monkeypatch):
    """Catches a tab that is left open on a held key and takes all memory."""
    monkeypatch.setattr("agent.exploring.session.Timeline", lambda *given: Timeline(*given, limit=5))
    client.start()
    client.moments("act", at=0, actions=push(steps=4))
    assert "the time line is full" in client.complaint("act", at=4, actions=push())
    assert client.start()["id"] == 0


def test_viewers_do_not_meet(server):
    """Catches two tabs that drive one another's robot, and a world that is built for whoever is turned away."""
    with server.client() as one, server.client() as other:
        one.start(seed=1)
        other.start(seed=2)
        here = one.moments("act", at=0, actions=push(0.5, 2))[-1][0]
        there = other.moments("act", at=0, actions=push(0.0, 8))[-1][0]
        then = one.moments("act", at=2, actions=push(0.5, 6))[-1]
        with server.client() as alone, server.client():
            with connect(f"ws://{server.host}/socket?task=none") as fifth, pytest.raises(ConnectionClosed):
                fifth.recv(timeout=20)
            assert fifth.close_code == FULL
            alone.start(seed=1)
            assert here["action"] == alone.moments("act", at=0, actions=push(0.5, 2))[-1][0]["action"]
            same = alone.moments("act", at=2, actions=push(0.5, 6))[-1]
            assert same[1] == then[1] and same[0]["dream"] == then[0]["dream"] != there["dream"]


# who may come in, and what they can reach


def fetch(server, path, **headers):
    """Status and text."""
    request = urllib.request.Request(f"http://{server.host}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers


def test_the_page_is_whole_and_asks_nobody_else(server):
    """Catches a file that is not in the package, and a page that needs the network."""
    status, page, headers = fetch(server, "/")
    assert status == 200 and "default-src 'none'" in headers["content-security-policy"]
    scripts = ("page", "charts", "curves", "hands", "moments", "views", "wire")
    for name in ("page.css", "icon.svg", *(f"{script}.js" for script in scripts)):
        status, text, _ = fetch(server, f"/{name}")
        assert status == 200 and text
        assert "://" not in text.replace("http://www.w3.org/2000/svg", "").replace("${scheme}://${location.host}", "")
    assert "://" not in page


@pytest.mark.parametrize("path", ["/../server.py", "/%2e%2e/server.py", "/..%2fserver.py", "/page", "/etc/passwd"])
def test_no_path_reaches_the_disk(server, path):
    """Catches a browser that reads files of this machine."""
    status, text, _ = fetch(server, path)
    assert status in (404, 405) and "import" not in text


def test_another_sites_page_cannot_ask(server):
    """Catches a page from anywhere that drives the server through this machine's browser, by its own name or by one
    that it lets lead to this address."""
    evil = "evil.example"
    for name, origin in ((server.host, f"http://{evil}"), (evil, None), (evil, f"http://{evil}")):
        road = create_connection(("127.0.0.1", server.port))
        with connect(f"ws://{name}/socket", sock=road, origin=origin) as socket, pytest.raises(ConnectionClosed):
            socket.recv(timeout=20)
        assert socket.close_code == REFUSED
    assert fetch(server, "/", Host="evil.example:80")[0] == 403
    with server.client(origin=f"http://{server.host}") as client:
        assert client.start()["id"] == 0


def test_a_host_that_others_reach_needs_a_key():
    """Catches a robot that anybody in the building can drive."""
    with pytest.raises(ValueError, match="needs a key of at least 16"):
        Door("0.0.0.0")
    with pytest.raises(ValueError, match="needs a key of at least 16"):
        Door("192.168.1.2", "short")
    assert Door("127.0.0.1").key == "" and Door("0.0.0.0", "k" * 16).key


def test_the_key_is_asked_for(untrained, tmp_path):
    """Catches a key that only the page needs and the socket does not."""
    key = "a-key-of-20-letters!"
    with serving(settings(untrained, tmp_path), key) as server:
        assert fetch(server, "/")[0] == fetch(server, "/?key=wrong")[0] == 403
        assert fetch(server, f"/?key={key}")[0] == 200
        with connect(f"ws://{server.host}/socket?key=") as socket, pytest.raises(ConnectionClosed):
            socket.recv(timeout=20)
        with server.client(f"?key={key}") as client:
            assert client.hello["tell"] == "hello"


def test_the_page_asks_for_what_there_is():
    """Catches a command of the page that the server does not know, or the reverse."""
    asked = re.findall(r'do: "(\w+)"', "".join(path.read_text() for path in PAGE.glob("*.js")))
    assert set(asked) == {*Session(None, None)._commands, "stop"}
