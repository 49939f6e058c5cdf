const BEGIN = Date.UTC(2026, 0, 1)
const LONGEST_TIMER = 2147483647 // a browser lets a longer one fire at once

/** Run all pending microtasks, as a browser does between two tasks. */
const settled = () => new Promise((done) => setImmediate(done))

/** A simulated clock, with the timers of one page and of its server. */
export class Clock {
  /** Milliseconds since the page was opened, like performance.now(). */
  now = 0
  #slept = 0
  #isAsleep = false
  #timers = new Map()
  #count = 0

  /** Milliseconds like Date.now(). */
  get date() {
    return BEGIN + this.now + this.#slept
  }

  /** The number of the client's timers that have not fired. */
  get pending() {
    return [...this.#timers.values()].filter(({ client }) => client).length
  }

  /** Call `callback` after `delay` ms, and then every `every` ms; return the timer's number. */
  after(delay, callback, { every, client } = {}) {
    const id = ++this.#count
    this.#timers.set(id, { at: this.now + delay, callback, every, client })
    return id
  }

  cancel(id) {
    this.#timers.delete(id)
  }

  /** Advance the clock by `ms`, or until `enough()` is true; return whether it was. */
  async pass(ms, enough = () => false) {
    const end = this.now + ms
    await settled()
    while (!enough()) {
      const [id, timer] = this.#next()
      if (!timer || timer.at > end) {
        this.now = end
        return false
      }
      this.now = Math.max(this.now, timer.at)
      this.#timers.delete(id)
      if (timer.every) this.#timers.set(id, { ...timer, at: this.now + timer.every })
      timer.callback()
      await settled()
    }
    return true
  }

  /** Let the machine sleep: no timer fires. Afterwards timers run on, or are overdue. */
  sleep(ms, { overdue }) {
    if (overdue) this.now += ms
    else this.#slept += ms
  }

  /** Let the machine of the page sleep while the server works. Its timers are overdue afterwards. */
  async sleepBeside(ms) {
    this.#isAsleep = true
    await this.pass(ms)
    this.#isAsleep = false
  }

  /** The globals for the time on a page, or, if `client` is false, in a server. `guard` runs the callbacks. */
  globals(guard, { client = true } = {}) {
    const clock = this
    const set = (every) => (callback, delay, ...rest) => {
      const wait = delay > LONGEST_TIMER ? 1 : Math.max(1, Math.trunc(delay) || 0)
      return clock.after(wait, () => guard(callback, ...rest), { every: every && wait, client })
    }
    const clear = (id) => clock.cancel(id)
    return {
      setTimeout: set(false),
      clearTimeout: clear,
      setInterval: set(true),
      clearInterval: clear,
      performance: { now: () => clock.now },
      Date: class extends Date {
        constructor(...parts) {
          super(...(parts.length ? parts : [clock.date]))
        }

        static now() {
          return clock.date
        }
      },
    }
  }

  // The earliest timer; of several, the one that was started first.
  #next() {
    let first = []
    for (const entry of this.#timers) {
      if (this.#isAsleep && entry[1].client) continue
      if (!first.length || entry[1].at < first[1].at) first = entry
    }
    return first
  }
}
