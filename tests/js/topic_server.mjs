/*
 * A server of topics for the tests, with one process: it subscribes, replays and sends gaps as docs/wire.rst
 * describes. It does nothing on its own. The test says when it reads a message, answers, and sends.
 */

import { settled } from "./support.mjs"

/** What is kept of one topic. Each message contains its epoch and its offset. */
class Feed {
  epoch = "e1"
  top = 0
  kept = []

  constructor(name, size) {
    this.name = name
    this.size = size
  }

  publish(isExcluded) {
    const offset = ++this.top
    const message = { offset, data: { epoch: this.epoch, offset }, isExcluded }
    if (this.size) this.kept.push(message)
    this.kept = this.kept.slice(-this.size)
    return message
  }

  clear() {
    this.epoch = `e${Number(this.epoch.slice(1)) + 1}`
    this.top = 0
    this.kept = []
  }

  get position() {
    return { epoch: this.epoch, offset: this.top }
  }

  /** The messages after `since`, or the reason why they cannot be replayed. */
  recover(since) {
    if (since.epoch !== this.epoch) return "epoch"
    const messages = this.kept.filter(({ offset }) => offset > since.offset)
    return since.offset <= this.top && messages.length === this.top - since.offset ? messages : "expired"
  }
}

/** One connection: what it subscribes to, and what is on its way to the client. */
class Connection {
  read = 0
  outbox = []
  waiting = []
  work = null
  live = new Map()

  constructor(server, socket) {
    this.server = server
    this.socket = socket
    socket.accept()
    this.outbox.push({ key: "websocket.ready", identity: server.user, topics: true })
  }

  get isOpen() {
    return this.socket.readyState === 1
  }

  /** Read the client's next message. A subscribe ends the earlier subscriptions when its work begins. */
  receive() {
    const message = this.socket.sent[this.read]
    if (!message) return
    this.read++
    if (message.type === "websocket.ping") this.outbox.push({ key: "websocket.pong" })
    if (/subscribe$/.test(message.type)) this.waiting.push(message)
    this.begin()
  }

  begin() {
    if (this.work || !this.waiting.length) return
    this.work = this.waiting.shift()
    for (const each of this.work.subscriptions ?? []) this.live.set(each.topic, [])
    for (const name of this.work.topics ?? []) this.live.delete(name)
  }

  /** Answer the message in work. `refuse(name)` returns an error code for a topic. */
  answer(refuse = () => null) {
    if (!this.work) return
    const { reply_key: key, subscriptions } = this.work
    this.work = null
    const answers = subscriptions?.map((each) => this.subscribe(each, refuse(each.topic)))
    this.outbox.push({ key, data: subscriptions ? { subscriptions: answers } : null })
    for (const { topic, error } of answers ?? []) if (!error) this.goLive(topic)
    this.begin()
  }

  subscribe({ topic, since }, code) {
    const feed = this.server.feeds.get(topic)
    if (code) {
      this.live.delete(topic)
      return { topic, error: { code } }
    }
    if (!feed.size) return { topic, recovered: false, ...(since && { reason: "none_kept" }) }
    const found = since ? feed.recover(since) : []
    const recovered = since !== undefined && typeof found !== "string"
    if (since && !recovered) this.server.refusals.add(`${topic} ${since.epoch} ${since.offset}`)
    const messages = recovered ? found.map((message) => this.form(message)) : []
    // The buffer without what is answered.
    const buffered = this.live.get(topic)
    this.live.set(topic, buffered.filter(({ data, offset }) => data?.epoch === feed.epoch && offset > feed.top))
    return { topic, ...feed.position, recovered, ...(since && !recovered && { reason: found }), messages }
  }

  form({ offset, data, isExcluded }) {
    return isExcluded ? { offset } : { offset, data }
  }

  goLive(topic) {
    this.live.set(topic, null)
  }

  /** Deliver a message to this connection, or keep it while it subscribes. */
  deliver(feed, message) {
    const buffer = this.live.get(feed.name)
    if (buffer) buffer.push(message)
    if (buffer !== null) return
    if (feed.size) this.outbox.push({ key: "websocket.topic", topic: feed.name, ...this.form(message) })
    else if (!message.isExcluded) this.outbox.push({ key: "websocket.topic", topic: feed.name, data: message.data })
  }

  gap(feed, reason) {
    if (this.live.get(feed.name) !== null || !feed.size) return
    this.outbox.push({ key: "websocket.gap", topic: feed.name, ...feed.position, reason })
  }

  end(topic, code) {
    if (this.live.get(topic) !== null) return
    this.live.delete(topic)
    this.outbox.push({ key: "websocket.unsubscribed", topic, error: { code } })
  }

  /** Let the client receive the next message. */
  send() {
    const message = this.outbox.shift()
    if (!message || !this.isOpen) return
    if (message.key === "websocket.ready") this.server.shown = message.identity
    this.socket.push(message)
  }
}

export class TopicServer {
  /** The identity of the user who is signed in. */
  user = "u-1"
  /** The last identity that the client has received. */
  shown = "u-1"
  feeds = new Map()
  connections = []
  /** The positions after which the server could not replay, and those to which a gap moves. */
  refusals = new Set()
  gaps = new Set()

  /** `sizes`: how many messages of each topic are kept, by name. */
  constructor(sizes) {
    for (const name in sizes) this.feeds.set(name, new Feed(name, sizes[name]))
  }

  get connection() {
    return this.connections.at(-1)
  }

  accept(socket) {
    if (socket?.readyState === 0) this.connections.push(new Connection(this, socket))
  }

  /** Work on everything, and let everything arrive at the `page`. */
  async flow(page, refuse) {
    for (let n = 0; n < 8; n++) {
      this.accept(page.socket)
      this.connection.receive()
      this.connection.answer(refuse)
      while (this.connection.outbox.length) this.connection.send()
      await settled()
    }
  }

  publish(name, isExcluded = false) {
    const feed = this.feeds.get(name)
    const message = feed.publish(isExcluded)
    for (const connection of this.connections) connection.deliver(feed, message)
    return message
  }

  /** Messages that this process has missed, and that are not kept any more. */
  skip(name, count) {
    const feed = this.feeds.get(name)
    for (let n = 0; n < count; n++) feed.publish(false)
    feed.kept = []
    this.gap(feed, "expired")
  }

  clear(name) {
    const feed = this.feeds.get(name)
    feed.clear()
    this.gap(feed, "epoch")
  }

  gap(feed, reason) {
    this.gaps.add(`${feed.name} ${feed.epoch} ${feed.top}`)
    for (const connection of this.connections) connection.gap(feed, reason)
  }
}
