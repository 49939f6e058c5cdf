class FakeEvent extends Event {
  constructor(type, facts) {
    super(type)
    for (const name of ["data", "code", "reason", "wasClean", "persisted"]) {
      if (facts && name in facts) this[name] = facts[name]
    }
  }
}

/** An EventTarget. Unlike Node's, it counts its listeners and survives their exceptions. */
export class Target {
  #guard
  #listeners = new Map()

  constructor(guard) {
    this.#guard = guard
  }

  get listening() {
    return [...this.#listeners.values()].reduce((sum, { size }) => sum + size, 0)
  }

  addEventListener(type, listener, { once = false, signal } = {}) {
    if (signal?.aborted) return
    if (!this.#listeners.has(type)) this.#listeners.set(type, new Map())
    const listeners = this.#listeners.get(type)
    if (!listeners.has(listener)) listeners.set(listener, once)
    signal?.addEventListener("abort", () => listeners.delete(listener))
  }

  removeEventListener(type, listener) {
    this.#listeners.get(type)?.delete(listener)
  }

  emit(type, facts) {
    const event = new FakeEvent(type, facts)
    const handler = this[`on${type}`]
    if (handler) this.#guard(handler.bind(this), event)
    for (const [listener, once] of [...(this.#listeners.get(type) ?? [])]) {
      if (once) this.removeEventListener(type, listener)
      this.#guard(listener.handleEvent?.bind(listener) ?? listener, event)
    }
  }
}
