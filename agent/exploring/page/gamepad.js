// A gamepad, where the browser has one: its sticks move the hand by as much as they are pushed. Numbers of axes and
// buttons are those of the standard layout, https://www.w3.org/TR/gamepad/#remapping.

const DEAD = 0.2; // a stick that is let go does not stand at 0
const STICKS = [["left stick ←", "left stick →"], ["left stick ↑", "left stick ↓"],
  ["right stick ←", "right stick →"], ["right stick ↑", "right stick ↓"]];
const BUTTONS = { 0: "A", 1: "B", 4: "LB", 5: "RB", 6: "LT", 7: "RT", 9: "Start", 14: "pad ←", 15: "pad →" };

/** `-axis1` or `button4`, as the settings have it, for people. */
export function padName(pad) {
  const [, sign, axis, button] = parts(pad);
  return axis === undefined ? BUTTONS[button] ?? `button ${button}` : STICKS[axis][sign === "+" ? 1 : 0];
}

const parts = (pad) => pad.match(/^(?:([+-])axis(\d)|button(\d+))$/);

/** How far a control is pushed, 0 to 1. */
function pushed(gamepad, pad) {
  const [, sign, axis, button] = parts(pad);
  if (axis === undefined) return gamepad.buttons[button]?.pressed ? 1 : 0;
  const far = (sign === "+" ? 1 : -1) * (gamepad.axes[axis] ?? 0);
  return Math.max(0, Math.min(1, (far - DEAD) / (1 - DEAD)));
}

export class Gamepad {
  /** push(i, share) is called when a control is pushed otherwise than before. actions: {button: function}. said(words):
      when one comes or goes. */
  constructor(controls, push, actions, said) {
    this.controls = controls.map(({ pad }, i) => [i, pad]).filter(([, pad]) => pad);
    this.push = push;
    this.actions = actions;
    this.shares = new Map(); // index of a control -> how far it is pushed
    this.down = new Set(); // buttons
    window.addEventListener("gamepadconnected", () => {
      said("A gamepad is connected.");
      if (!this.looking) this.look();
    });
    window.addEventListener("gamepaddisconnected", () => said("The gamepad is gone."));
  }

  /** Browsers tell of no change: it has to be looked for, as often as the page is drawn. */
  look() {
    const gamepad = navigator.getGamepads().find((each) => each?.connected);
    this.looking = gamepad ? requestAnimationFrame(() => this.look()) : 0;
    for (const [i, pad] of this.controls) {
      const share = gamepad ? pushed(gamepad, pad) : 0;
      if (share === (this.shares.get(i) ?? 0)) continue;
      this.shares.set(i, share);
      this.push(i, share);
    }
    for (const [button, act] of Object.entries(this.actions)) {
      const down = Boolean(gamepad?.buttons[button]?.pressed);
      if (down && !this.down.has(button)) act();
      this.down[down ? "add" : "delete"](button);
    }
  }
}
