/*
 * Random runs of one page with subscriptions and of a server of topics. run() throws if a handler gets a
 * message twice, out of order, or not at all without a gap.
 */
import assert from "node:assert/strict"

import { FakeSocket } from "./support.mjs"
import { TopicServer } from "./topic_server.mjs"

const SIZES = { "orders/1": 100, "orders/2": 4, scores: 0 }
const NAMES = Object.keys(SIZES)
const STEPS = 300

/** A random number generator that repeats its numbers for the same seed (mulberry32). */
function randomFrom(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296
  }
}

/** One subscription, and the position after which its handler must get the next message. */
class Reader {
  missed = new Set()
  isEnded = false
  /** Of a topic without history: messages may have been missed. */
  isNew = true

  constructor(run, name, since) {
    this.run = run
    this.name = name
    this.feed = run.server.feeds.get(name)
    this.expected = since
    this.begun = run.received.get(name)
    /** To whom the position belongs. */
    this.user = run.server.shown
    this.calls = 0
    this.subscription = run.manager.subscribe(name, this.handle, { since })
    this.subscription.on("gap", this.handleGap)
    let before = "subscribing"
    this.subscription.on("state", ({ state }) => {
      assert.notEqual(before, "ended", "a state after ended")
      run.turns.add(`${before} -> ${state}`)
      before = state
      if (state !== "live" || this.expected) return
      this.expected = this.subscription.position
      this.user = run.server.shown
    })
  }

  handle = (data, { offset, topic }) => {
    const { run, feed } = this
    assert.equal(this.isEnded, false, "a handler is called after unsubscribe()")
    assert.equal(topic, this.name)
    if (feed.size) {
      assert.equal(this.user, run.server.shown, "a replay after the position of another user")
      assert.deepEqual(this.subscription.position, { epoch: data.epoch, offset })
      assert.equal(data.offset, offset)
    }
    this.check(data)
    this.expected = data
    run.received.set(this.name, data)
    this.calls++
    const chance = run.random()
    if (chance < 0.05) throw new Error("thrown by a handler")
    if (chance < 0.08) this.end()
    if (chance > 0.98) run.manager.reconnect()
  }

  check({ epoch, offset }) {
    const { expected, feed, begun } = this
    if (!expected) {
      assert.ok(epoch !== begun?.epoch || offset > begun.offset, "a message from before subscribe()")
    } else if (feed.size || !this.isNew) {
      assert.equal(epoch, expected.epoch, "a message of another epoch without a gap")
      assert.ok(offset > expected.offset, `${offset} after ${expected.offset}: twice, or out of order`)
      for (let lost = expected.offset + 1; lost < offset; lost++) {
        assert.ok(this.run.excluded.has(`${this.name} ${epoch} ${lost}`), `${lost} is lost before ${offset}`)
      }
    }
    this.isNew = false
  }

  handleGap = ({ reason, position }) => {
    const { server } = this.run
    assert.equal(this.isEnded, false, "a gap after unsubscribe()")
    assert.equal(typeof reason, "string")
    if (!this.feed.size) {
      this.isNew = true
      return
    }
    if (reason === "identity") {
      assert.ok(this.run.hasOtherUser, "a gap without another user")
      this.user = server.shown
      this.expected = position
      return
    }
    const { epoch, offset } = this.expected
    // Excluded messages have moved the position without a call.
    let last = offset
    const isRefusedAt = () => server.refusals.has(`${this.name} ${epoch} ${last}`)
    while (!isRefusedAt() && this.run.excluded.has(`${this.name} ${epoch} ${last + 1}`)) last++
    const isRefused = isRefusedAt()
    const isGap = server.gaps.has(`${this.name} ${position.epoch} ${position.offset}`)
    assert.ok(isRefused || isGap, `a gap (${reason}) after ${epoch} ${offset}, from which the server can replay`)
    assert.ok(epoch !== position.epoch || offset !== position.offset, "a gap that skips nothing")
    this.expected = position
  }

  end() {
    this.isEnded = true
    this.subscription.unsubscribe()
  }
}

class Run {
  readers = []
  hasOtherUser = false
  excluded = new Set()
  /** The last message that any handler of a topic got. */
  received = new Map()

  constructor(page, WebSocketManager, seed, turns) {
    this.page = page
    this.turns = turns
    this.random = page.random = randomFrom(seed)
    FakeSocket.all.length = 0
    this.server = new TopicServer(SIZES)
    this.manager = new WebSocketManager("/ws/", null, { identity: "u-1", allowUserChange: true })
    // The client reports what a handler throws, also an assertion.
    this.errors = []
    this.manager.on("error", ({ code, cause, message }) => {
      if (code !== "user_changed" && cause?.message !== "thrown by a handler") this.errors.push(cause ?? new Error(message))
    })
  }

  below = (limit) => Math.floor(this.random() * limit)
  pick = (list) => list[this.below(list.length)]

  /** Random actions, by how often they happen. */
  actions = [
    [30, () => this.publish()],
    [20, () => this.server.connection?.send()],
    [12, () => this.flow()],
    [12, () => this.server.connection?.receive()],
    [12, () => this.server.connection?.answer(this.refuse)],
    [8, () => this.server.accept(FakeSocket.all.at(-1))],
    [6, () => this.subscribe()],
    [4, () => this.pick(this.readers)?.end()],
    [4, () => this.page.tick(this.below(4000))],
    [2, () => this.restart()],
    [1, () => this.changeUser()],
    [1, () => this.freeze()],
    [1, () => this.page.sleep(this.below(60000))],
    [1, () => this.server.skip(this.pick(NAMES.slice(0, 2)), 1 + this.below(3))],
    [1, () => this.server.clear(this.pick(NAMES.slice(0, 2)))],
    [1, () => this.server.connection?.end(this.pick(NAMES), "unavailable")],
    [1, () => this.replaceAtOnce()],
  ]

  publish() {
    const name = this.pick(NAMES)
    // A topic without history sends nothing to an excluded connection.
    const isExcluded = SIZES[name] > 0 && this.random() < 0.1
    const { data } = this.server.publish(name, isExcluded)
    if (isExcluded) this.excluded.add(`${name} ${data.epoch} ${data.offset}`)
  }

  /** The network is fast for a moment. */
  flow() {
    const { connection } = this.server
    connection?.receive()
    connection?.answer(this.refuse)
    for (let n = 0; n < 4; n++) connection?.send()
  }

  refuse = () => (this.random() < 0.1 ? this.pick(["unavailable", "rate_limited"]) : null)

  subscribe(name = this.pick(NAMES)) {
    const { epoch, top } = this.server.feeds.get(name)
    const older = { epoch: this.random() < 0.9 ? epoch : "e0", offset: Math.max(0, top - this.below(8)) }
    this.readers.push(new Reader(this, name, SIZES[name] && this.random() < 0.6 ? older : null))
  }

  replaceAtOnce() {
    const reader = this.pick(this.readers)
    if (!reader) return
    reader.end()
    this.subscribe(reader.name)
  }

  /** The server ends: all connections are lost, with what is on its way. */
  restart() {
    for (const { socket } of this.server.connections.splice(0)) if (socket.readyState < 3) socket.drop()
  }

  /** A user signs in: another one, or the same again. */
  changeUser() {
    const { user } = this.server
    this.server.user = `u-${1 + this.below(3)}`
    this.hasOtherUser ||= user !== this.server.user
    this.restart()
  }

  freeze() {
    this.page.window.dispatch("pagehide")
    this.page.tick(this.below(20000))
    this.page.window.dispatch("pageshow")
  }

  async step() {
    let left = this.below(this.actions.reduce((sum, [weight]) => sum + weight, 0))
    const [, act] = this.actions.find(([weight]) => (left -= weight) < 0)
    act()
    await this.turn()
  }

  /** Let the promises of the client settle. */
  async turn() {
    for (let n = 0; n < 3; n++) await null
    if (this.errors.length) throw this.errors[0]
  }

  /** The network is good again: everything arrives, and all subscriptions become live. */
  async settle() {
    const isSettled = () =>
      this.readers.every(({ isEnded, subscription }) => isEnded || subscription.state === "live")
    this.refuse = () => null
    for (let n = 0; n < 400; n++) {
      const { connection } = this.server
      this.server.accept(FakeSocket.all.at(-1))
      connection?.receive()
      connection?.answer()
      connection?.send()
      if (!connection?.outbox.length) this.page.tick(500)
      await this.turn()
      if (isSettled() && connection?.isOpen && !connection.outbox.length && !connection.work && n > 20) break
    }
    const wanted = this.readers.filter(({ isEnded }) => !isEnded).map(({ name }) => name)
    const { live = new Map() } = this.server.connection ?? {}
    assert.deepEqual([...live.keys()].sort(), [...new Set(wanted)].sort(), "what the server sends")
    for (const { isEnded, subscription, expected, feed, name } of this.readers) {
      if (isEnded) continue
      assert.equal(subscription.state, "live", `${name} is not live in the end`)
      if (!feed.size) continue
      assert.deepEqual(subscription.position, feed.position, `${name} has missed messages`)
      for (let lost = expected.offset + 1; lost <= feed.top; lost++) {
        assert.ok(this.excluded.has(`${name} ${feed.epoch} ${lost}`), `the last message, ${lost}, is lost`)
      }
    }
  }
}

/**
 * Make one random run with the client. Returns how many messages its handlers got, and adds the changes of
 * the subscriptions' states to `turns`.
 */
export async function run(page, WebSocketManager, seed, turns = new Set()) {
  const made = new Run(page, WebSocketManager, seed, turns)
  try {
    for (let step = 0; step < STEPS; step++) await made.step()
    await made.settle()
    return made.readers.reduce((sum, { calls }) => sum + calls, 0)
  } catch (error) {
    error.message = `Run ${seed}: ${error.message}`
    throw error
  } finally {
    made.manager.close()
  }
}
