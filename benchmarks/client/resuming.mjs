import { ours as simple } from "./clients.mjs"
import { startSocketIO } from "./socketio.mjs"

/*
 * The clients that resume: each with the recovery of its documentation, and its default settings.
 *
 * `open(exports, page, {receive, gap})` follows one stream of numbers. It calls `receive(number)` with each
 * message, and `gap()` if the client reports that messages may be lost. `start(clock)` starts a server with
 * `serve(connection)`, `publish(number)` and `restart(keeps)`, which returns false if the server cannot
 * keep its history. Except for that of socket.io, the servers only speak the protocol, one message at a time.
 */

const SIZE = 100 // messages that a server keeps, and for how many ms
const AGE = 300_000

/** The history of a stream. */
class History {
  #epochs = 0

  constructor(clock) {
    this.clock = clock
    this.clear()
  }

  clear() {
    this.epoch = `e${++this.#epochs}`
    this.top = 0
    this.kept = []
  }

  add(data) {
    const message = { offset: ++this.top, data, at: this.clock.now }
    this.kept = [...this.kept, message].slice(-SIZE)
    return message
  }

  /** Return the kept messages that `isWanted` accepts. */
  find(isWanted) {
    return this.kept.filter((message) => this.clock.now - message.at <= AGE && isWanted(message))
  }

  /** Return the messages after a position, or null if they are not all kept. */
  after({ epoch, offset }) {
    const found = this.find((message) => message.offset > offset)
    return epoch === this.epoch && offset <= this.top && found.length === this.top - offset ? found : null
  }
}

/** A server of one stream. The subclasses speak the protocols. */
class StreamServer {
  live = new Set()

  constructor(clock) {
    this.clock = clock
    this.history = new History(clock)
  }

  publish(number) {
    const message = this.history.add({ number })
    for (const connection of this.live) connection.say(JSON.stringify(this.form(message)))
  }

  /** Start again, with the history of before if it `keeps` it in a database. */
  restart(keeps) {
    this.live.clear()
    if (!keeps) this.history.clear()
    return true
  }
}

class OurServer extends StreamServer {
  form = ({ offset, data }) => ({ key: "websocket.topic", topic: "numbers", offset, data })

  serve(connection) {
    connection.say('{"key": "websocket.ready", "identity": "x", "topics": true}')
    return (text) => {
      const { type, reply_key: key, subscriptions } = JSON.parse(text)
      if (type === "websocket.ping") connection.say('{"key": "websocket.pong"}')
      if (type !== "websocket.subscribe") return
      connection.say(JSON.stringify({ key, data: { subscriptions: subscriptions.map(this.answer) } }))
      this.live.add(connection)
    }
  }

  answer = ({ topic, since }) => {
    const { epoch, top } = this.history
    const messages = since ? this.history.after(since) : null
    const reason = since && !messages ? (since.epoch === epoch ? "expired" : "epoch") : undefined
    return { topic, epoch, offset: top, recovered: !!messages, reason, messages: messages ?? [] }
  }
}

const ours = {
  ...simple,
  place: "a database",
  open({ default: WebSocketManager }, { token }, { receive, gap }) {
    const manager = new WebSocketManager("/ws/", async () => token())
    manager.subscribe("numbers", ({ number }) => receive(number)).on("gap", gap)
  },
  start: (clock) => new OurServer(clock),
}

class CentrifugeServer extends StreamServer {
  form = (message) => ({ push: { channel: "numbers", pub: this.publication(message) } })
  publication = ({ offset, data }) => ({ offset, data })

  serve(connection) {
    connection.every(25_000, () => connection.say("{}"))
    return (text) => {
      for (const line of text.split("\n")) this.handle(connection, JSON.parse(line))
    }
  }

  handle(connection, { id, connect, subscribe }) {
    if (connect) connection.say(JSON.stringify({ id, connect: { client: "c", version: "6", ping: 25, pong: true } }))
    if (!subscribe) return
    const { epoch, top } = this.history
    const found = subscribe.recover ? this.history.after({ offset: 0, ...subscribe }) : null
    const recovery = { was_recovering: true, recovered: !!found, publications: (found ?? []).map(this.publication) }
    const answer = { recoverable: true, positioned: true, epoch, offset: top, ...(subscribe.recover && recovery) }
    connection.say(JSON.stringify({ id, subscribe: answer }))
    this.live.add(connection)
  }
}

const centrifuge = {
  name: "centrifuge",
  place: "memory or Redis",
  entry: 'export { Centrifuge } from "centrifuge"',
  open({ Centrifuge }, page, { receive, gap }) {
    const client = new Centrifuge("wss://example.com/connection/websocket")
    const subscription = client.newSubscription("numbers", { recoverable: true, positioned: true })
    subscription.on("publication", ({ data }) => receive(data.number))
    subscription.on("subscribed", ({ wasRecovering, recovered }) => wasRecovering && !recovered && gap())
    subscription.subscribe()
    client.connect()
  },
  start: (clock) => new CentrifugeServer(clock),
}

const STREAM = "numbers"
const IDENTIFIER = JSON.stringify({ channel: "$pubsub", stream_name: STREAM })

class AnyCableServer extends StreamServer {
  /** The time of the last connection of each session. */
  sessions = new Map()
  #count = 0

  form = ({ offset, data }) => ({
    identifier: IDENTIFIER,
    message: data,
    stream_id: STREAM,
    epoch: this.history.epoch,
    offset,
  })

  restart(keeps) {
    if (!keeps) this.sessions.clear()
    return super.restart(keeps)
  }

  serve(connection) {
    const { clock, sessions } = this
    const say = (message) => connection.say(JSON.stringify(message))
    const sid = `s${++this.#count}`
    const isRestored = clock.now - sessions.get(new URL(connection.url).searchParams.get("sid")) <= AGE
    connection.every(3000, () => say({ type: "ping", message: Math.trunc(clock.date / 1000) }))
    // A session is kept while it is connected, and for some time after it.
    connection.every(1000, () => isLive() && sessions.set(sid, clock.now))
    const isLive = () => this.live.has(connection)
    const follow = () => {
      this.live.add(connection)
      sessions.set(sid, clock.now)
    }
    say({ type: "welcome", sid, ...(isRestored && { restored: true, restored_ids: [IDENTIFIER] }) })
    if (isRestored) follow()
    return (text) => {
      const { command, history } = JSON.parse(text)
      if (command === "subscribe") say({ type: "confirm_subscription", identifier: IDENTIFIER })
      if (command === "subscribe") follow()
      if (history) this.replay(say, history)
    }
  }

  replay(say, { since, streams }) {
    const position = streams[STREAM]
    const isRecent = ({ at }) => Math.trunc((this.clock.date - this.clock.now + at) / 1000) >= since
    const found = position ? this.from(position) : this.history.find(isRecent)
    for (const message of found ?? []) say(this.form(message))
    say({ type: found ? "confirm_history" : "reject_history", identifier: IDENTIFIER })
  }

  /** The message at the position must be kept too. */
  from({ epoch, offset }) {
    const found = this.history.find((message) => message.offset >= offset)
    return epoch === this.history.epoch && found[0]?.offset === offset ? found.slice(1) : null
  }
}

const anyCable = {
  name: "@anycable/web",
  place: "memory or Redis",
  entry: 'export { createCable } from "@anycable/web"',
  open({ createCable }, page, { receive, gap }) {
    const cable = createCable("wss://example.com/cable", { protocol: "actioncable-v1-ext-json" })
    const channel = cable.streamFrom(STREAM)
    channel.on("message", ({ number }) => receive(number))
    channel.on("info", ({ type }) => type === "history_not_found" && gap())
  },
  start: (clock) => new AnyCableServer(clock),
}

const socketIO = {
  name: "socket.io-client",
  place: "memory",
  entry: 'export { io } from "socket.io-client"',
  open({ io }, page, { receive, gap }) {
    const socket = io({ transports: ["websocket"] })
    let wasConnected = false
    socket.on("number", receive)
    socket.on("connect", () => {
      if (wasConnected && !socket.recovered) gap()
      wasConnected = true
    })
  },
  start: startSocketIO,
}

/** The package's client and the others. */
export const resuming = [ours, centrifuge, anyCable, socketIO]
