// Keys and buttons that move the hand: what is held now, and what was tapped too briefly to be held.

const names = { Space: "Space", ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓" };

export const keyName = (code) => names[code] ?? code.replace(/^(Key|Digit)/, "");

/** Whether a key belongs to what has the focus and not to the robot. */
export function elsewhere(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return true;
  const tag = event.target.tagName;
  if (tag === "INPUT" && event.target.type === "range") return event.code.startsWith("Arrow");
  if (tag === "INPUT") return event.target.type !== "checkbox" || event.code === "Space";
  if (tag === "BUTTON" || tag === "SUMMARY") return event.code === "Space" || event.code === "Enter";
  return tag === "SELECT";
}

export class Hands {
  /** changed() is called when something is pressed. toggle() opens or closes the jaws. */
  constructor(controls, pad, changed, toggle) {
    this.controls = controls;
    this.held = new Map(); // index of a control -> how far it is pushed, 0 to 1
    this.tapped = new Map();
    this.changed = changed;
    this.byKey = new Map(controls.flatMap((control, i) => control.keys.map((key) => [key, i])));
    this.buttons = controls.map(({ label, keys }, i) => this.button(label, keys, (down) => this.press(i, down ? 1 : 0)));
    pad.replaceChildren(...this.buttons);
    if (toggle) {
      this.jaws = document.createElement("button");
      this.jaws.append("jaws ", kbd("Space"));
      this.jaws.className = "jaws";
      this.jaws.onclick = toggle;
      pad.append(this.jaws);
    }
    window.addEventListener("blur", () => this.release());
  }

  button(label, keys, press) {
    const button = document.createElement("button");
    button.append(`${label} `, ...keys.map((key) => kbd(keyName(key))));
    button.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      event.preventDefault(); // no focus, no selection, no long press
      button.setPointerCapture(event.pointerId);
      press(true);
    });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      button.addEventListener(end, () => press(false));
    }
    button.addEventListener("click", (event) => { // by the keyboard, or what reads the page aloud
      if (event.detail === 0) {
        press(true);
        press(false);
      }
    });
    button.addEventListener("contextmenu", (event) => event.preventDefault());
    return button;
  }

  /** Whether a key was one of these. */
  key(event, down) {
    const i = this.byKey.get(event.code);
    if (i === undefined) return false;
    if (!event.repeat) this.press(i, down ? 1 : 0);
    return true;
  }

  /** share: how far it is pushed, 1 of a key, 0 when it is let go. */
  press(i, share) {
    const before = this.held.has(i);
    this.buttons[i].classList.toggle("down", share > 0);
    if (share) {
      this.held.set(i, share);
      this.tapped.set(i, share);
    } else {
      this.held.delete(i);
    }
    if (before !== share > 0) this.changed();
  }

  release() {
    for (const i of [...this.held.keys()]) this.press(i, 0);
  }

  get idle() {
    return !this.held.size && !this.tapped.size;
  }

  /** What the hand should do now, from an action that does nothing. speed: share of full. Forgets taps. */
  command(still, rest, speed) {
    const action = [...still];
    for (const [i, share] of new Map([...this.tapped, ...this.held])) {
      const { index, value } = this.controls[i];
      action[index] += speed * share * (value - rest[index]);
    }
    this.tapped.clear();
    return action;
  }
}

function kbd(text) {
  const key = document.createElement("kbd");
  key.textContent = text;
  return key;
}
