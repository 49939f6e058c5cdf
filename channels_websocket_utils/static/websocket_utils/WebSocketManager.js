/*
 * WebSocketManager: a WebSocket that reconnects, with replies, streams, topics and pushed messages.
 *
 * createManager() makes the state of one manager, dial() the state of one dial and its socket,
 * submit() and createStream() the state of one call, createSubscription() that of one subscription. The
 * other functions take these as arguments.
 * enter() alone changes `manager.state`, turn() alone the state of a subscription, dialIn() alone decides
 * when the manager dials, and handleCloseCode() alone decides what a close code means.
 *
 * docs/client_internals.rst explains the states, the limits and the reasons.
 */
!(function () {
  "use strict"

  // Milliseconds, messages or bytes.
  const ATTEMPT_LIMIT = 10000
  const REPLY_LIMIT = 10000
  const QUEUE_LIMIT = 60000
  const QUEUE_MESSAGES = 100
  const QUEUE_BYTES = 1048576
  const BUFFERED_BYTES = 1048576
  const BUFFER_CHECK = 100
  const STEADY_AFTER = 5000
  const READY_LIMIT = 1000
  const PROOF_LIMIT = 100
  const CLOSE_LIMIT = 100
  const ASK_AGAIN = 3000
  const TOO_MANY_WAIT = 30000
  const SILENCE_LIMIT = 25000
  const PONG_LIMIT = 10000
  const WAKE_LIMIT = 3000
  const CALL_LIMIT = 120000
  const CREDIT = 64
  const CREDIT_STEP = 32
  const LONGEST_TIMER = 2.1e9 // setTimeout() fires at once if the delay is 2**31 or more

  const STOPS = { 1000: "ended", 4400: "bad_message", 4403: "refused", 4409: "replaced" }

  // The states of a manager, beside the three of "connecting". docs/client_internals.rst has the table of what
  // may follow what, and the tests check each transition. `state` of the class is the part before the dot.
  const OPEN = "open" // messages are sent at once
  const WAITING = "waiting" // for the next dial
  const CLOSED = "closed" // until the constructor or reconnect() dials

  // The states of a subscription. docs/client.rst draws them.
  const SUBSCRIBING = "subscribing" // messages of the topic are ignored, until the server has answered
  const LIVE = "live" // each message goes to the handler
  const ENDED = "ended" // for good

  const NO_FAILURES = { failures: 0, refusals: 0, ended: 0, urgent: true }

  // Shared by all managers of the page, so that no two of them use the same key.
  let count = 0

  // The clock of the page in milliseconds. While the system's clock is set back, this one stands still.
  let age = 0
  let date = 0

  // Errors

  /**
   * The error of a failed call, and the detail of an "error" event.
   *
   * `code` says what happened. `cause` is what a handler or a token function threw. `id` is in the
   * server's log if the code is `internal`.
   */
  class WebSocketManagerError extends Error {
    constructor(code, message = code, more) {
      super(message)
      this.name = "WebSocketManagerError"
      this.code = code
      Object.assign(this, more)
    }
  }

  function newServerError(error) {
    const { code = "internal", message, ...more } = error || {}
    return new WebSocketManagerError(code, message, more)
  }

  function check(fact, claim, value) {
    if (fact) return
    throw new TypeError(`WebSocketManager: ${claim}, not ${value && typeof value}`)
  }

  const durationOr = (value, usual) => (typeof value === "number" && value >= 0 ? value : usual)

  // The state of a manager, of an attempt and of a call. A field without a value is undefined at first.

  /**
   * @typedef {object} Manager
   * @property {string} url Of the socket, without a token.
   * @property {object} options Those of the class.
   * @property {function|undefined} ask Returns the token for one dial.
   * @property {string|undefined} token The string, until a dial uses it.
   * @property {string|undefined} used The token of the last dial.
   * @property {boolean} asks Can dial again: false if the string is the only token.
   *
   * @property {string} state Only enter() changes it.
   * @property {object} event The last "state" event.
   * @property {Attempt|null} attempt Null between two attempts.
   * @property {boolean} opened A connection was open before.
   *
   * @property {number} timer There is only one, and tick() is its function.
   * @property {number} timerAt When it fires.
   * @property {number} due When the state needs the call of `act`.
   * @property {function(Manager, boolean)} act
   *
   * @property {number} failures Since a connection was last open for STEADY_AFTER.
   * @property {number} refusals Closes with 4401 in a row.
   * @property {number} ended 1 after a close with 4410, 2 after the token refusal that follows it.
   * @property {boolean} urgent After 4401 and 4410 one dial needs no wait; the next one does.
   * @property {number} notBefore The server has asked for no dial before this time.
   *
   * @property {boolean|undefined} usesOwn The endpoint refused the CSRF token of the cookie.
   * @property {string|undefined} identity The last one that was known, at first that of the page.
   * @property {string|undefined} queueIdentity Of the last connection, whose user filled the queue.
   *
   * @property {string} id Of all reply keys.
   * @property {Map<string, Call>} queue Calls that are not sent yet.
   * @property {Map<string, Call>} calls Calls that are sent and wait for a reply.
   * @property {Map<string, Map>} listeners Of pushed messages.
   * @property {Map<string, Map>} handlers Of "state" and "error".
   * @property {Map<string, Topic>} topics Those with subscriptions, and those that the manager leaves.
   * @property {Object<string, Position>|null} positions Of the page, by topic. Null for another user.
   * @property {function(Event)} listener Of events of the page.
   */
  function createManager(path, token, options, identity) {
    check(typeof path === "string", "path must be a string", path)
    let url
    try {
      // As a text, because the URL of React Native has no setters.
      url = new URL(path, globalThis.location?.href).href.replace(/^http/, "ws").replace(/#.*/, "")
    } catch {}
    if (!/^wss?:/.test(url)) throw new TypeError("WebSocketManager: path must be a full wss: URL without a page")
    const isFunction = typeof token === "function"
    const isValid = isFunction || typeof (token ?? "") === "string"
    check(isValid, "token must be a string, a function or null", token)
    const requestToken = ({ signal }) => requestFromEndpoint(manager, signal)
    const ask = isFunction ? token : options.tokenURL && requestToken
    const manager = {
      url,
      options,
      ask,
      token: !isFunction && token,
      asks: ask || !token,
      state: CLOSED,
      timerAt: Infinity,
      due: Infinity,
      ...NO_FAILURES,
      notBefore: 0,
      identity,
      id: Date.now() + `${Math.random()}`.slice(2),
      queue: new Map(),
      calls: new Map(),
      listeners: new Map(),
      handlers: new Map(),
      topics: new Map(),
      positions: { __proto__: null, ...JSON.parse(readPage("positions").positions ?? null) },
      listener: ({ type }) => handlePageEvent(manager, type),
    }
    return manager
  }

  /**
   * The state of one dial, and of its socket until the dial fails or the connection is lost.
   *
   * @typedef {object} Attempt
   * @property {AbortController} aborter Of the token request.
   * @property {WebSocket} socket
   * @property {number} openedAt
   * @property {string|undefined} identity As the answer with the token, or websocket.ready, names it.
   * @property {boolean} unproven Messages may be lost: the server refuses a token after the handshake.
   * @property {boolean} ready The server has sent websocket.ready, so it answers pings.
   * @property {boolean} topics The server has topics, as websocket.ready says.
   * @property {number} asks Requests about topics that wait for their reply.
   *
   * @property {number} receivedAt When the last message came. The next four count from there.
   * @property {number} calledAt When the last call was sent.
   * @property {number} pings
   * @property {number} pingedAt The first of these pings.
   * @property {number} until The limit for the answer.
   */

  /**
   * A message that is queued or sent. The caller of submit() gives the first six.
   *
   * @typedef {object} Call
   * @property {function(*, boolean|null)|undefined} answer Called with the reply or the part, and `more`.
   * @property {function(WebSocketManagerError)} reject
   * @property {AbortSignal} [signal]
   * @property {number} [timeout]
   * @property {*} [streams] True if the caller takes more than one part.
   * @property {Array} [parts] Of stream(): what the reader has not taken. It waits for websocket.ready.
   *
   * @property {string} key
   * @property {string} text The message as JSON.
   * @property {number} size Its bytes, if it was queued.
   * @property {number} until The limit for the reply, or for the next part.
   * @property {number} due The limit for the queue.
   * @property {function()} abort The listener of the signal.
   *
   * @property {Attempt} attempt That sent it.
   * @property {number} calledAt When it was sent. 0 if it delays no pong.
   * @property {boolean} paced The server waits for credit.
   * @property {number} taken How many parts the reader has taken.
   *
   * @property {number} limit Of stream(): how long to wait for a part.
   * @property {boolean} done Of stream(): no more parts come.
   * @property {Error} error Of stream(): thrown after the last part.
   * @property {function()|null} wake Of stream(): resumes a reader that waits.
   */

  // Handlers

  function guard(manager, handler, detail, isSilent) {
    try {
      return handler?.(detail)
    } catch (cause) {
      if (!isSilent) fail(manager, "handler_failed", cause)
    }
  }

  function log(manager, level, detail) {
    try {
      // A forgotten auto_route() or error handler is then visible in the browser.
      const logger = manager.options.logger ?? (level === "error" && !manager.handlers.has(level) && console)
      logger?.[level]?.("WebSocketManager", detail)
    } catch {}
  }

  function dispatch(manager, map, key, detail, isSilent) {
    // A copy: handlers may be added and removed meanwhile, and a removed one is not called.
    for (const [handler, undo] of new Map(map.get(key))) {
      if (map.get(key)?.get(handler) !== undo) continue
      // An earlier handler has changed the state, and the newer event is dispatched already.
      if (key === "state" && map === manager.handlers && detail !== manager.event) return
      if (undo.once) undo()
      guard(manager, handler, detail, isSilent)
    }
  }

  function emit(manager, event, detail) {
    log(manager, event === "error" ? event : "debug", detail)
    dispatch(manager, manager.handlers, event, detail, event === "error")
  }

  function fail(manager, code, cause) {
    emit(manager, "error", new WebSocketManagerError(code, code, cause && { cause }))
  }

  function checkHandler(key, handler) {
    check(typeof key === "string", "key must be a string", key)
    check(typeof handler === "function", "handler must be a function", handler)
  }

  function listen(map, key, handler, settings) {
    checkHandler(key, handler)
    const handlers = map.get(key) || new Map()
    if (handlers.has(handler)) return handlers.get(handler)
    const undo = () => {
      settings?.signal?.removeEventListener("abort", undo)
      if (handlers.get(handler) === undo) handlers.delete(handler)
      if (!handlers.size && map.get(key) === handlers) map.delete(key)
    }
    undo.once = settings?.once
    if (settings?.signal?.aborted) return undo
    settings?.signal?.addEventListener("abort", undo)
    map.set(key, handlers.set(handler, undo))
    return undo
  }

  // Time: one timer for all that a manager waits for

  function clock() {
    const before = date
    date = Date.now()
    return (age += Math.max(0, date - before))
  }

  function wakeAt(manager, at) {
    if (!(at < manager.timerAt)) return
    clearTimeout(manager.timer)
    manager.timerAt = at
    manager.timer = setTimeout(() => tick(manager), Math.min(at - clock(), LONGEST_TIMER))
  }

  // What the state does next. There is one plan at a time.
  function plan(manager, delay, act) {
    manager.due = clock() + delay
    manager.act = act
    wakeAt(manager, manager.due)
  }

  const deadline = (call) => Math.min(call.until, call.due)

  function tick(manager) {
    clearTimeout(manager.timer)
    manager.timerAt = Infinity
    rejectCalls(manager, takeCalls(manager, (call) => deadline(call) <= clock()), "timeout")
    const lateness = clock() - manager.due
    if (lateness >= 0) {
      manager.due = Infinity
      manager.act(manager, lateness > WAKE_LIMIT)
    }
    flush(manager)
    updateTopics(manager)
    wakeAt(manager, manager.due)
    for (const call of allCalls(manager)) wakeAt(manager, deadline(call))
  }

  // States

  // The only function that changes the state. It calls no handler: announce() does that.
  function enter(manager, next) {
    if (["connecting.token", WAITING, CLOSED].includes(next)) endAttempt(manager)
    manager.state = next
  }

  function announce(manager, reason = null, delay = 0) {
    emit(
      manager,
      "state",
      (manager.event = { state: publicState(manager), reason, attempt: manager.failures + 1, delay }),
    )
    // The connection of the topics is lost, or it has just opened and has none.
    for (const topic of manager.topics.values()) suspend(manager, topic, "disconnected")
  }

  const publicState = (manager) => manager.state.split(".")[0]

  async function endAttempt(manager) {
    const { attempt } = manager
    manager.attempt = null
    manager.due = Infinity
    if (manager.state === OPEN) manager.queueIdentity = attempt.identity || manager.options.identity
    attempt?.socket?.close()
    // Later, because a listener of the signal may call close() or reconnect().
    await null
    attempt?.aborter.abort()
  }

  // Ends the connection. Its calls are rejected after `proceed` has entered the next state.
  function loseConnection(manager, proceed) {
    const { attempt } = manager
    const isLost = (call) => call.attempt === attempt
    if (clock() - attempt?.openedAt >= STEADY_AFTER) Object.assign(manager, NO_FAILURES)
    const lost = takeCalls(manager, isLost)
    proceed()
    // A handler may have sent a call meanwhile.
    rejectCalls(manager, [...lost, ...takeCalls(manager, isLost)], "disconnected")
  }

  function stop(manager, reason, cause) {
    const code = /^(no|user)_/.test(reason) ? reason : "closed"
    const rest = takeCalls(manager)
    enter(manager, CLOSED)
    watchPage(manager, "removeEventListener")
    clearTimeout(manager.timer)
    manager.timerAt = Infinity
    announce(manager, reason)
    rejectCalls(manager, rest, code)
    if (reason !== "closed" && reason !== "ended") fail(manager, reason, cause)
  }

  // Dialling

  // The only function that decides when the manager dials.
  function dialIn(manager, reason, delay) {
    if (!manager.asks && !manager.token) stop(manager, "no_token")
    else if (delay) wait(manager, reason, delay)
    else dial(manager, reason)
  }

  function wait(manager, reason, delay) {
    enter(manager, WAITING)
    plan(manager, delay, () => (isHidden() ? wait(manager, "hidden", Infinity) : dial(manager, reason)))
    announce(manager, reason, delay)
  }

  function retry(manager, reason, least, isUrgent) {
    const { attempt, failures } = manager
    if (failures >= (manager.options.maxRetries ?? Infinity)) return stop(manager, "max_retries")
    const own = guard(manager, manager.options.backoff, failures)
    if (attempt !== manager.attempt) return
    const pause = durationOr(own, randomPause(failures))
    manager.failures++
    manager.notBefore = clock() + durationOr(least, 0)
    // A pause of 0 becomes 1, because a hidden page does not dial after a pause.
    dialIn(manager, reason, isUrgent ? 0 : pause + durationOr(least, 0) || 1)
  }

  const randomPause = (failures) => 200 + Math.random() * Math.min(15000, 3000 * 1.4 ** failures)

  function dial(manager, reason) {
    enter(manager, "connecting.token")
    const attempt = (manager.attempt = { aborter: new AbortController(), calledAt: 0, pings: 0, asks: 0 })
    plan(manager, ATTEMPT_LIMIT, () => retry(manager, "timeout"))
    announce(manager, reason)
    if (attempt !== manager.attempt) return
    const { token } = manager
    manager.token = ""
    attempt.unproven = token
    if (token || !manager.ask) connect(manager, token)
    else requestToken(manager)
  }

  async function requestToken(manager) {
    const { ask, attempt } = manager
    let answer, token
    try {
      answer = await ask({ attempt: manager.failures + 1, signal: attempt.aborter.signal })
      token = answer?.token ?? answer
      if (!token || typeof token !== "string" || token === manager.used) throw new Error("No token")
    } catch (error) {
      // An error that is thrown at once is then handled when on("error") has listeners.
      await null
      return attempt !== manager.attempt || handleTokenError(manager, error || {})
    }
    if (attempt !== manager.attempt) return
    manager.ended = 0
    learnIdentity(manager, answer.identity)
    if (attempt === manager.attempt) connect(manager, token)
  }

  async function connect(manager, token) {
    const { attempt, url } = manager
    enter(manager, "connecting.socket") // it is opening
    manager.used = token
    let socket
    try {
      const isOffered = token && manager.options.tokenSource === "subprotocol"
      const target = token && !isOffered ? url.replace(/\/*(?=\?|$)/, "/" + encodeURIComponent(token)) : url
      socket = attempt.socket = new WebSocket(target, isOffered ? ["websocket.token", token] : [])
    } catch (cause) {
      await null
      if (attempt !== manager.attempt) return
      if (!globalThis.WebSocket) return stop(manager, "no_websocket", cause)
      // The browser's error is dropped: it holds the URL, and with it the token.
      return retry(manager, "disconnected")
    }
    socket.onopen = () => (attempt === manager.attempt ? handleOpen(manager) : socket.close())
    socket.onmessage = (event) => attempt === manager.attempt && receive(manager, event.data)
    socket.onclose = (event) => attempt === manager.attempt && handleClose(manager, event)
    // Node 20 and 22 report a refused connection as an error, without a close.
    socket.onerror = () =>
      attempt === manager.attempt &&
      plan(manager, CLOSE_LIMIT, () => handleClose(manager, { code: 1006, reason: "", wasClean: false }))
  }

  function handleOpen(manager) {
    const { attempt } = manager
    attempt.openedAt = clock()
    const needsIdentity = !attempt.identity && (manager.opened ? manager.queueIdentity : manager.identity)
    attempt.unproven ||= manager.used && manager.queue.size
    if (!attempt.unproven && !needsIdentity) return open(manager)
    enter(manager, "connecting.proof") // the server may still refuse the token
    plan(manager, needsIdentity ? READY_LIMIT : PROOF_LIMIT, open)
  }

  // Sends the queue if its user is the user of this connection. From now on messages are sent at once.
  function open(manager) {
    const user = manager.attempt.identity || manager.options.identity
    const isSame = !manager.opened || (user && user === manager.queueIdentity)
    const dropped = isSame ? [] : takeCalls(manager)
    enter(manager, OPEN)
    manager.opened = true
    manager.due = Infinity
    flush(manager)
    announce(manager)
    rejectCalls(manager, dropped, "disconnected")
    tick(manager)
  }

  function learnIdentity(manager, identity) {
    if (!identity || manager.attempt.identity) return
    const isKnown = (manager.identity || identity) === identity
    manager.attempt.identity = manager.identity = identity
    if (isKnown) return
    manager.queueIdentity = identity
    manager.positions = null
    for (const { members } of manager.topics.values()) {
      for (const subscription of members) {
        subscription.position = null
        if (subscription._lapse) subscription._lapse = "identity"
      }
    }
    if (!manager.options.allowUserChange) return stop(manager, "user_changed")
    rejectCalls(manager, takeCalls(manager), "user_changed")
    fail(manager, "user_changed")
  }

  function handleClose(manager, event) {
    const { attempt } = manager
    const wish = guard(manager, manager.options.shouldReconnect, event)
    if (attempt === manager.attempt) loseConnection(manager, () => handleCloseCode(manager, event.code, wish))
  }

  // The only function that decides what a close code means.
  function handleCloseCode(manager, code, wish) {
    const needsToken = code === 4401 || code === 4410
    let reason = STOPS[code] || (/^10(0[2379]|10)$/.test(code) && "protocol_error")
    if (code === 4401 && ++manager.refusals > 2) reason = "token_refused"
    if (wish === false) reason = reason || "declined"
    if (wish === true) reason = undefined
    if (code === 4410) manager.ended = 1
    const isUrgent = needsToken && manager.urgent
    if (needsToken) manager.urgent = false
    if (reason) stop(manager, reason)
    else retry(manager, "disconnected", code === 4429 && TOO_MANY_WAIT, isUrgent)
  }

  function handleTokenError(manager, error) {
    const { fatal, status, retryAfter } = error
    if (!fatal && status !== 401 && status !== 403) {
      log(manager, "warn", error)
      return retry(manager, "token_failed", Number(retryAfter) * 1000)
    }
    if (fatal || manager.ended !== 1) {
      return stop(manager, manager.ended || status === 401 ? "signed_out" : "token_refused", error)
    }
    manager.ended = 2
    manager.notBefore = clock() + ASK_AGAIN
    dialIn(manager, "signed_out", ASK_AGAIN)
  }

  async function requestFromEndpoint(manager, signal, isSecond) {
    const { tokenURL } = manager.options
    // A tag that is rendered without a request has no CSRF token, but the names of cookie and header.
    const page = { ...readPage("socket-path"), ...readPage("csrf-token") }
    const own = page.csrfToken
    // Django reads the last of several cookies with one name.
    const [, ...cookies] = ("; " + globalThis.document?.cookie).split("; " + (page.csrfCookie ?? "csrftoken") + "=")
    const known =
      (typeof manager.options.csrfToken === "function" ? manager.options.csrfToken() : manager.options.csrfToken) ||
      cookies.pop()?.split(";")[0]
    // The page's own token is old after a sign-in in another tab.
    const csrf = (manager.usesOwn && own) || known || own
    const response = await fetch(tokenURL, {
      method: "POST",
      headers: {
        "Content-Type": "application/json",
        ...(csrf && { [manager.options.csrfHeader ?? page.csrfHeader ?? "X-CSRFToken"]: csrf }),
      },
      body: JSON.stringify({
        path: manager.options.tokenPath ?? manager.url.replace(/^[^/]*\/\/[^/]*|\?.*/g, ""),
        url: tokenURL,
      }),
      redirect: "manual", // fetch() fails if a login is at another origin
      signal,
    })
    if (response.status === 403 && known && own && !isSecond) {
      manager.usesOwn = !manager.usesOwn
      return requestFromEndpoint(manager, signal, true)
    }
    // The fetch() of React Native follows redirects and does not mention them. Its tokenURL is a full URL.
    const isMoved = response.redirected ?? (response.url && !response.url.startsWith(tokenURL))
    // In browsers a redirect has the status 0.
    const isLogin = isMoved
      ? response.status < 500
      : response.status < 400 && (!response.ok || /html/i.test(response.headers?.get("Content-Type")))
    // A JSON error is dropped: it quotes the body, which may hold a token.
    const answer = response.status <= 400 && (await response.json().catch(() => null))
    if (response.ok && (answer?.token || !isLogin)) return answer
    throw Object.assign(new Error(`tokenURL answered ${response.status}`), {
      status: isLogin ? 401 : response.status,
      // Another 400 is that of a proxy, which may be gone at the next request.
      fatal: answer?.error?.code === "bad_message",
      retryAfter: response.headers?.get("Retry-After"),
    })
  }

  // The page

  // An image of users with the name "hidden" would be the value.
  const isHidden = () => globalThis.document?.hidden === true

  // Returns the data-* attributes of the script, or the body, that has data-`name`. No other element is read,
  // because content that users write may have such attributes.
  function readPage(name) {
    return globalThis.document?.querySelector?.(`script[data-${name}],body[data-${name}]`)?.dataset ?? {}
  }

  function watchPage(manager, method) {
    // A page that becomes visible is reported twice, by document and window. The second time is harmless.
    for (const name of ["visibilitychange", "resume", "freeze", "online", "offline", "pageshow", "pagehide"]) {
      globalThis.document?.[method]?.(name, manager.listener)
      globalThis[method]?.(name, manager.listener)
    }
  }

  function handlePageEvent(manager, type) {
    if (type === "pagehide" || type === "freeze") {
      // Without a source of new tokens the connection stays, because no other could replace it.
      const canLeave = manager.asks && (manager.attempt || manager.due < Infinity)
      if (canLeave) loseConnection(manager, () => dialIn(manager, "hidden", Infinity))
      return
    }
    if (type === "visibilitychange" && isHidden()) return
    if (type === "online") manager.failures = 0
    ping(manager, WAKE_LIMIT)
    tick(manager)
    if (manager.state !== WAITING || isHidden() || type === "offline") return
    dialIn(manager, "wake", Math.max(0, manager.notBefore - clock()))
  }

  // Liveness

  function ping(manager, limit) {
    const { attempt } = manager
    const now = clock()
    if (!attempt?.ready) return
    if (attempt.pings && now < attempt.until) {
      attempt.until = Math.min(attempt.until, now + limit)
    } else {
      if (!attempt.pings++) attempt.pingedAt = now
      attempt.until = now + limit
      control(manager, "ping")
    }
    plan(manager, deathAt(manager) - now, checkConnection)
  }

  function deathAt(manager) {
    let last = manager.attempt.calledAt
    for (const { calledAt } of manager.calls.values()) last = Math.max(last, calledAt)
    // The second limit ends a dead connection on which calls are sent again and again.
    return Math.max(manager.attempt.until, Math.min(last, manager.attempt.pingedAt + CALL_LIMIT) + CALL_LIMIT)
  }

  function checkConnection(manager, isLate) {
    const delay = (manager.attempt.pings ? deathAt(manager) : manager.attempt.receivedAt + SILENCE_LIMIT) - clock()
    if (delay > 0) plan(manager, delay, checkConnection)
    // After a sleep the timer is late, and the pong may wait in the event queue behind it.
    else if (!manager.attempt.pings || (isLate && manager.attempt.pings < 2)) {
      ping(manager, isLate ? WAKE_LIMIT : PONG_LIMIT)
    } else loseConnection(manager, () => retry(manager, "timeout"))
  }

  // Calls

  function receive(manager, text) {
    const { attempt } = manager
    manager.refusals = attempt.pings = attempt.calledAt = 0
    attempt.receivedAt = clock()
    let message
    try {
      message = JSON.parse(text)
    } catch {}
    // Of valid JSON, only an object begins so.
    if (!message || !/^\s*{/.test(text)) return fail(manager, "bad_message")
    const isReady = message.key === "websocket.ready"
    if (isReady) {
      attempt.ready = true
      attempt.topics = message.topics
      learnIdentity(manager, message.identity)
    }
    if (attempt !== manager.attempt) return
    if (manager.state !== OPEN && (isReady || attempt.unproven)) open(manager)
    if (attempt !== manager.attempt) return
    if (isReady) {
      plan(manager, SILENCE_LIMIT, checkConnection)
      flush(manager)
      updateTopics(manager)
    }
    const call = manager.calls.get(message.key)
    const topic = manager.topics.get(message.topic)
    if (message.key === "websocket.error") emit(manager, "error", newServerError(message.error))
    else if (call) handleReply(manager, call, message)
    else if (topic?.ready && /^websocket\.(topic|gap|unsubscribed)$/.test(message.key)) {
      handleTopic(manager, topic, message)
    } else dispatch(manager, manager.listeners, message.key, message)
  }

  // A message of the package's protocol. One about a call goes only to the socket that sent the call.
  function control({ attempt }, type, call, more) {
    if (!attempt?.ready || (call && call.attempt !== attempt)) return
    attempt.socket.send(JSON.stringify({ type: `websocket.${type}`, reply_key: call?.key, ...more }))
  }

  function submit(manager, message, call) {
    message = message?.toJSON?.() ?? message
    check(typeof message?.type === "string", "type of the message must be a string", message?.type)
    call.key = newKey(manager)
    call.text = JSON.stringify(call.answer ? { ...message, reply_key: call.key } : message)
    // JSON.stringify() escapes only a lone surrogate so. An even number of backslashes before it is text.
    if (/[^\\](\\\\)*\\ud/.test(call.text)) {
      throw new WebSocketManagerError("bad_message", "message must be valid Unicode")
    }
    if (manager.state === CLOSED) throw new WebSocketManagerError("closed")
    if (call.signal?.aborted) throw new WebSocketManagerError("aborted")
    flush(manager)
    if (manager.queue.size || !canSend(manager, call)) {
      let bytes = (call.size = new TextEncoder().encode(call.text).length)
      for (const each of manager.queue.values()) bytes += each.size || 0
      if (manager.queue.size >= QUEUE_MESSAGES || bytes > QUEUE_BYTES) throw new WebSocketManagerError("overflow")
    }
    call.until = call.answer ? clock() + durationOr(call.timeout, REPLY_LIMIT) : Infinity
    call.due = clock() + QUEUE_LIMIT
    call.taken = 0
    call.abort = () => release(manager, call) && rejectCalls(manager, [call], "aborted")
    call.signal?.addEventListener("abort", call.abort)
    manager.queue.set(call.key, call)
    flush(manager)
    wakeAt(manager, deadline(call))
    return call
  }

  const allCalls = (manager) => [...manager.queue.values(), ...manager.calls.values()]

  function release(manager, call) {
    call.signal?.removeEventListener("abort", call.abort)
    return manager.queue.delete(call.key) || manager.calls.delete(call.key)
  }

  function takeCalls(manager, test = () => true) {
    return allCalls(manager).filter((call) => test(call) && release(manager, call))
  }

  function rejectCalls(manager, calls, code) {
    for (const call of calls) {
      control(manager, "cancel", call)
      call.reject(new WebSocketManagerError(code))
    }
  }

  // A closing socket drops messages without an error, and the buffer of a slow one grows without limit.
  function canSend(manager, call) {
    const { attempt } = manager
    if (manager.state !== OPEN || attempt.socket.readyState > 1) return false
    if (attempt.socket.bufferedAmount > BUFFERED_BYTES) return false
    return !call.parts || attempt.ready || clock() >= attempt.openedAt + READY_LIMIT
  }

  function flush(manager) {
    for (const call of manager.queue.values()) {
      if (deadline(call) <= clock()) continue
      if (!canSend(manager, call)) {
        if (manager.state === OPEN) wakeAt(manager, clock() + BUFFER_CHECK)
        return
      }
      transmit(manager, call)
    }
  }

  function transmit(manager, call) {
    const { attempt } = manager
    manager.queue.delete(call.key)
    call.attempt = attempt
    call.due = Infinity
    call.calledAt = attempt.calledAt = clock()
    if (call.answer) manager.calls.set(call.key, call)
    call.paced = attempt.ready && call.streams
    // The text was made in submit(), so later changes of the message object have no effect.
    attempt.socket.send(call.paced ? `${call.text.slice(0, -1)},"credit":${CREDIT}}` : call.text)
  }

  const newKey = (manager) => `${manager.id}.${++count}`

  // Called for each part that the reader takes. The credit goes to the server in steps.
  function addCredit(manager, call) {
    if (++call.taken % CREDIT_STEP || !call.paced || !manager.calls.has(call.key)) return
    control(manager, "more", call, { parts: CREDIT_STEP })
  }

  function handleReply(manager, call, { key, ...rest }) {
    // A boolean `more` marks a part (true) or the end (false) of a stream. A reply may have another `more`.
    const more = typeof rest.more === "boolean" ? rest.more : null
    if (more !== null) delete rest.more
    if (!more || !call.streams) release(manager, call)
    if (rest.error) return call.reject(newServerError(rest.error))
    if (more !== null && !call.streams) {
      control(manager, "cancel", call)
      return call.reject(new WebSocketManagerError("stream", "This method streams: use stream()"))
    }
    call.until = Infinity
    call.calledAt = 0 // a stream runs beside other calls and delays no pong
    call.answer(Object.keys(rest).join() === "data" ? rest.data : rest, more)
  }

  // Streams

  function createStream(manager, message, settings) {
    const call = {
      answer(value, more) {
        if (more !== false) call.parts.push(value)
        updateStream(manager, call, !more)
      },
      reject: (error) => updateStream(manager, call, true, error),
      signal: settings.signal,
      timeout: Infinity,
      limit: durationOr(settings.timeout, Infinity),
      parts: [],
      streams: true,
    }
    try {
      submit(manager, message, call)
    } catch (error) {
      call.reject(error)
    }
    const reader = readParts(manager, call)
    // The generator cannot notice return() and throw() while it waits, or before its first next().
    for (const method of ["return", "throw"]) {
      const leave = reader[method]
      reader[method] = (value) => {
        if (!call.done && release(manager, call)) control(manager, "cancel", call)
        updateStream(manager, call, true)
        return leave.call(reader, value)
      }
    }
    return reader
  }

  async function* readParts(manager, call) {
    while (call.parts.length || !call.done) {
      if (call.parts.length) {
        const part = call.parts.shift()
        addCredit(manager, call)
        limitStream(manager, call)
        yield part
      } else {
        await new Promise((wake) => {
          call.wake = wake
          limitStream(manager, call)
        })
      }
    }
    if (call.error) throw call.error
  }

  function updateStream(manager, call, done, error) {
    call.done = done
    call.error = error
    call.wake?.()
    call.wake = null
    limitStream(manager, call)
  }

  // The time limit runs while the reader waits for a part, or the server for credit.
  function limitStream(manager, call) {
    if (call.done) return
    const isCreditUsed = call.paced && call.parts.length + (call.taken % CREDIT_STEP) >= CREDIT
    call.until = call.wake || isCreditUsed ? clock() + call.limit : Infinity
    wakeAt(manager, call.until)
  }

  // Topics

  /**
   * What the server sends of one topic to this page.
   *
   * @typedef {object} Topic
   * @property {string} name
   * @property {Set<Subscription>} members Those that have not ended. Without one, the manager unsubscribes.
   * @property {Attempt|null} attempt On which the server was asked for the topic.
   * @property {Position} [asked] After which the server was asked to replay.
   * @property {boolean} ready The server has agreed, and sends the message after `position` next.
   * @property {Position|null} position Null if the topic has no history.
   * @property {number} failures How often in a row the server has refused it for a while.
   * @property {number} askAt After such a refusal: when to ask again.
   */

  /**
   * @typedef {object} Position
   * @property {string} epoch
   * @property {number} offset
   */

  // True if a page at the position `one` has all messages up to the position `other`.
  const covers = (one, other) => one?.epoch === other?.epoch && one?.offset >= other?.offset

  function createSubscription(manager, name, handler, { signal, since = manager.positions?.[name] }) {
    checkHandler(name, handler)
    // The server refuses the whole message if one `since` has another form.
    check(!since || (typeof since.epoch === "string" && since.offset >= 0), "since must be a position", since)
    const topic = manager.topics.get(name) || { name, members: new Set(), failures: 0 }
    const handlers = new Map() // of "gap" and "state"
    const end = (reason) => {
      signal?.removeEventListener("abort", abort)
      topic.members.delete(subscription)
      turn(manager, subscription, ENDED, reason)
      updateTopicsSoon(manager)
    }
    const abort = () => end("aborted")
    const subscription = {
      topic: name,
      state: SUBSCRIBING, // only turn() changes it
      position: since || null,
      on: (event, handler, options) => listen(handlers, event, handler, options),
      unsubscribe: () => end("unsubscribed"),
      _handler: handler,
      _handlers: handlers,
      _end: end,
      _lapse: since && "none_kept", // the reason of a gap for which the server gives none
    }
    manager.topics.set(name, topic)
    topic.members.add(subscription)
    signal?.addEventListener("abort", abort)
    if (signal?.aborted) abort()
    updateTopicsSoon(manager)
    return subscription
  }

  // The only function that changes the state of a subscription.
  function turn(manager, subscription, state, reason = null) {
    if (subscription.state === state || subscription.state === ENDED) return
    subscription.state = state
    dispatch(manager, subscription._handlers, "state", { state, reason })
  }

  // Later, so that one message contains all changes of one moment.
  async function updateTopicsSoon(manager) {
    await null
    updateTopics(manager)
  }

  // The only function that decides what the server is asked for. It does so again after each answer.
  function updateTopics(manager) {
    const { attempt } = manager
    if (!attempt?.ready || attempt.asks) return
    const left = []
    const wanted = []
    for (const topic of [...manager.topics.values()]) {
      const isAsked = topic.attempt === attempt
      if (!attempt.topics) refuse(manager, topic, { code: "unsupported" })
      else if (isAsked && topic.askAt > clock()) wakeAt(manager, topic.askAt)
      else if (topic.members.size) {
        join(manager, topic)
        if ([...topic.members].some((each) => each.state !== LIVE)) wanted.push(topic)
      } else if (isAsked) left.push(topic)
      else manager.topics.delete(topic.name)
    }
    // A handler may have closed the manager.
    if (attempt !== manager.attempt) return
    const subscriptions = wanted.map((topic) => ({ topic: topic.name, since: (topic.asked = oldest(topic)) }))
    if (left.length) ask(manager, "unsubscribe", left, { topics: left.map((topic) => topic.name) })
    if (wanted.length) ask(manager, "subscribe", wanted, { subscriptions })
  }

  // The answer is about the position `asked`. A subscription with another one may stay as it is: join() refuses
  // it, and the manager asks again.
  function handleAnswer(manager, topic, data) {
    const answer = data?.subscriptions?.find?.((each) => each?.topic === topic.name)
    if (!answer || answer.error) return refuse(manager, topic, answer?.error || { code: "unavailable" })
    const { epoch, offset, messages = [] } = answer
    topic.ready = true
    topic.position = epoch ? { epoch, offset } : null
    topic.failures = 0
    for (const subscription of [...topic.members]) {
      if (answer.recovered && covers(subscription.position, topic.asked)) {
        for (const message of messages) deliver(manager, topic, subscription, message)
      } else if (
        !subscription.position ||
        (covers(subscription.position, topic.asked) && covers(topic.asked, subscription.position))
      ) {
        skip(manager, topic, subscription, answer)
      }
    }
    join(manager, topic)
  }

  // Makes those subscriptions live that need no replay.
  function join(manager, topic) {
    for (const subscription of [...topic.members]) {
      // The position may be ahead of the topic's: deliver() then skips what the subscription does not miss.
      if (topic.ready && (!subscription.position || covers(subscription.position, topic.position))) {
        subscription.position = subscription.position || topic.position
        subscription._lapse = "none_kept" // from now on messages can be missed
        turn(manager, subscription, LIVE)
      }
    }
  }

  // Returns the oldest position of the subscriptions that are not live, in the epoch of the first one.
  function oldest(topic) {
    let found
    for (const { position, state } of topic.members) {
      if (position && state !== LIVE && (!found || covers(found, position))) found = position
    }
    return found
  }

  function ask(manager, verb, topics, content) {
    const { attempt } = manager
    const call = {
      key: newKey(manager),
      attempt,
      calledAt: 0, // it runs beside other calls and delays no pong
      until: clock() + CALL_LIMIT,
      due: Infinity,
      answer(data) {
        attempt.asks--
        for (const topic of topics) {
          if (attempt !== manager.attempt) return
          if (verb === "unsubscribe") topic.attempt = null
          else handleAnswer(manager, topic, data)
        }
        updateTopics(manager)
      },
      reject(error) {
        attempt.asks--
        for (const topic of topics) if (attempt === manager.attempt) refuse(manager, topic, error)
      },
    }
    attempt.asks++
    manager.calls.set(call.key, call)
    control(manager, verb, call, content)
    wakeAt(manager, call.until)
    for (const topic of topics) {
      topic.attempt = attempt
      suspend(manager, topic)
    }
  }

  function suspend(manager, topic, reason) {
    topic.ready = false
    for (const subscription of [...topic.members]) turn(manager, subscription, SUBSCRIBING, reason)
  }

  // The position moves first, so that a handler that throws is not called again.
  function deliver(manager, topic, subscription, { offset, data }) {
    // An earlier handler may have ended the subscription or the connection.
    if (!topic.ready || subscription.state === ENDED || offset <= subscription.position?.offset) return
    if (topic.position) subscription.position = { ...topic.position, offset }
    // The server sends no data to the connection that `exclude` names.
    if (data) guard(manager, () => subscription._handler(data, { offset, topic: topic.name }))
  }

  function skip(manager, topic, subscription, { reason }) {
    const position = (subscription.position = topic.position)
    if (subscription._lapse) {
      dispatch(manager, subscription._handlers, "gap", { reason: reason || subscription._lapse, position })
    }
  }

  // Handles a message about a topic that is live.
  function handleTopic(manager, topic, message) {
    if (message.key === "websocket.unsubscribed") return refuse(manager, topic, message.error)
    // The server leaves out no message. Only a gap names an epoch.
    const { offset } = message
    if (topic.position) topic.position = { epoch: message.epoch || topic.position.epoch, offset }
    for (const subscription of [...topic.members]) {
      if (subscription.state !== LIVE) continue
      if (message.key !== "websocket.gap") deliver(manager, topic, subscription, message)
      else if (!covers(subscription.position, topic.position)) skip(manager, topic, subscription, message)
    }
  }

  function refuse(manager, topic, refusal) {
    const error = newServerError(refusal)
    error.topic = topic.name
    // After these errors the manager asks again.
    if (["unavailable", "rate_limited", "timeout"].includes(error.code)) {
      log(manager, "warn", error)
      topic.askAt = clock() + randomPause(topic.failures++)
      suspend(manager, topic, error.code)
      return updateTopicsSoon(manager)
    }
    manager.topics.delete(topic.name)
    for (const subscription of [...topic.members]) {
      const isHeard = subscription._handlers.has("state")
      subscription._end(error.code)
      if (!isHeard) emit(manager, "error", error)
    }
  }

  // The public class

  /**
   * A WebSocket that reconnects. May be called without `new`.
   *
   * Without a path, the constructor reads the page: the first script, or the body, with a
   * `data-socket-path`, and its `data-token`, `data-token-url`, `data-token-source`, `data-token-path`
   * and `data-identity`. Arguments override these attributes.
   *
   * @param {string} [path] Path or full URL of the socket. The token is added as its last part, unless
   *   it is offered as a subprotocol.
   * @param {string|function({attempt: number, signal: AbortSignal})|null} [token] A string for the
   *   first dial, or a function that is called once for each dial and returns (a promise of) a token or
   *   `{token, identity}`. The manager stops if it throws an error with `status` 401 or 403 or with
   *   `fatal`. `retryAfter` of an error is a number of seconds.
   * @param {object} [options]
   * @param {string} [options.tokenURL] The endpoint that issues tokens.
   * @param {"path"|"subprotocol"} [options.tokenSource] "subprotocol" offers the token as a subprotocol,
   *   which keeps it out of the URL; the gate must accept that source. By default "path".
   * @param {string} [options.tokenPath] The path that tokens are for, if a proxy changes the path of the
   *   socket: the path that the server gets, or "" for any path.
   * @param {string|function(): string} [options.csrfToken] For the tokenURL. By default the cookie. Without
   *   one, or if it is refused, the `data-csrf-token` of the first script, or the body, that has one.
   * @param {string} [options.csrfHeader] The header of the CSRF token, by default "X-CSRFToken".
   * @param {string|null} [options.identity] The identity of the user of all connections, as the server names
   *   it. With null, the first connection is not compared with the identity of the page.
   * @param {boolean} [options.allowUserChange] Continue after another user has signed in.
   * @param {number} [options.maxRetries] How often the manager dials again in a row; no limit by default.
   * @param {function(number): number} [options.backoff] Milliseconds to wait after n failures.
   * @param {function(CloseEvent): boolean} [options.shouldReconnect] true or false overrides the meaning
   *   of the close code.
   * @param {object|false} [options.logger] An object with methods of `console`. Without it, only errors that
   *   no handler of on("error") receives are written, to the console. With false, nothing is written.
   */
  function WebSocketManager(path, token = null, options = {}) {
    if (!new.target) return new WebSocketManager(path, token, options)
    const page = readPage("socket-path")
    const isOfPage = path == null && page.socketPath
    if (isOfPage) {
      path = page.socketPath
      token = token ?? page.token
      // The token opens one socket, so it is for one manager.
      delete page.token
      options = { tokenURL: page.tokenUrl, tokenSource: page.tokenSource, tokenPath: page.tokenPath, ...options }
    }
    // Identities of the same endpoint can be compared.
    const isOfEndpoint = options.tokenURL && options.tokenURL === page.tokenUrl
    // Not in the options: it is the user of the page, perhaps no longer that of a later connection.
    const { identity = (isOfPage || isOfEndpoint) && page.identity } = options
    this._manager = createManager(path, token, options, identity)
    watchPage(this._manager, "addEventListener")
    dial(this._manager, "start")
  }

  // On the prototype, so that a subclass can override the methods and call super.
  WebSocketManager.prototype = {
    constructor: WebSocketManager,

    /** "connecting", "open", "waiting" or "closed". */
    get state() {
      return publicState(this._manager)
    },

    /**
     * Send `message`. `replyHandler` is called with the reply, or with each part of a stream. An error
     * goes to on("error").
     *
     * Returns true if the message was sent, false if it is queued. Throws a WebSocketManagerError:
     * `overflow` if the queue is full, `closed` if the manager is closed, `bad_message` if a text of the
     * message is not valid Unicode.
     *
     * @param {object} message
     * @param {function(*)} [replyHandler]
     * @returns {boolean}
     */
    sendJSON(message, replyHandler) {
      const manager = this._manager
      check(!replyHandler || typeof replyHandler === "function", "replyHandler must be a function", replyHandler)
      const answer = (value, more) => {
        if (more !== false) guard(manager, replyHandler, value)
        if (more) addCredit(manager, call)
      }
      const call = submit(manager, message, {
        answer: replyHandler && answer,
        reject: (error) => emit(manager, "error", error),
        streams: replyHandler,
      })
      return !manager.queue.has(call.key)
    },

    /**
     * Send `message` and return a promise of its reply. The promise is rejected with a
     * WebSocketManagerError, with the code `stream` if the method streams.
     *
     * @param {object} message
     * @param {{timeout?: number, signal?: AbortSignal}} [options] The time limit is 10 s by default.
     * @returns {Promise<*>}
     */
    request(message, options) {
      return new Promise((answer, reject) => {
        submit(this._manager, message, { ...options, answer, reject })
      })
    },

    /**
     * Send `message` at once and return an async iterator of the parts of the answer.
     *
     * Parts that came before an error are delivered before the error is thrown. Leaving the loop cancels
     * the stream on the server. A method that does not stream gives one part.
     *
     * @param {object} message
     * @param {{timeout?: number, signal?: AbortSignal}} [options] The time limit is for each part: while
     *   the reader waits, or while the reader takes nothing and the server may send no more. No limit
     *   by default.
     * @returns {AsyncIterableIterator<*>}
     */
    stream(message, options = {}) {
      return createStream(this._manager, message, options)
    },

    /**
     * Call `handler` with every message that the server pushes under `key`. Returns a function that
     * removes the handler.
     *
     * @param {string} key
     * @param {function(object)} handler
     * @param {{once?: boolean, signal?: AbortSignal}} [options]
     * @returns {function()}
     */
    addMessageListener(key, handler, options) {
      return listen(this._manager.listeners, key, handler, options)
    },

    /**
     * Undo addMessageListener().
     *
     * @param {string} key
     * @param {function(object)} handler
     */
    removeMessageListener(key, handler) {
      this._manager.listeners.get(key)?.get(handler)?.()
    },

    /**
     * Call `handler` on "state" ({state, reason, attempt, delay}) or "error" (a WebSocketManagerError).
     * Returns a function that removes the handler.
     *
     * `attempt` is 1 for the first dial, and 1 more than the failures since a connection was last steady.
     * `delay` is the number of milliseconds until the next dial: Infinity while the page is hidden.
     *
     * @param {"state"|"error"} event
     * @param {function(object)} handler
     * @param {{once?: boolean, signal?: AbortSignal}} [options]
     * @returns {function()}
     */
    on(event, handler, options) {
      return listen(this._manager.handlers, event, handler, options)
    },

    /**
     * Call `handler` with each message of a topic: `handler(data, {offset, topic})`.
     *
     * The subscription resumes at its position after each loss of the connection. Its event "gap"
     * ({reason, position}) reports that messages are lost. Its event "state" ({state, reason}) reports
     * "subscribing", "live" and "ended". An error that ends it goes to on("error") of the manager if the
     * subscription has no handler of "state".
     *
     * @param {string} topic
     * @param {function(object, {offset: number|undefined, topic: string})} handler
     * @param {{signal?: AbortSignal, since?: Position|null}} [options] The signal ends the subscription.
     *   The handler gets the messages after the position `since`: by default that of the page, in the
     *   `data-positions` of the first script, or the body, that has one. With null it gets the messages
     *   from now on.
     * @returns {Subscription} With `topic`, `state`, `position`, `on()` and `unsubscribe()`.
     */
    subscribe(topic, handler, options = {}) {
      return createSubscription(this._manager, topic, handler, options)
    },

    /** Close for good: reject calls as `closed`, and remove all timers and all listeners of the page. */
    close() {
      if (this._manager.state !== CLOSED) stop(this._manager, "closed")
    },

    /** Dial at once, from any state. */
    reconnect() {
      const manager = this._manager
      watchPage(manager, "addEventListener")
      loseConnection(manager, () => {
        Object.assign(manager, NO_FAILURES)
        dialIn(manager, "reconnect")
      })
    },
  }

  WebSocketManager.WebSocketManagerError = WebSocketManagerError

  const isCommonJS = typeof module === "object" && (module.exports = WebSocketManager.default = WebSocketManager)
  // In a page of Electron with node integration, `module` is a global, and other scripts need the class.
  if (!isCommonJS || globalThis.module) globalThis.WebSocketManager = WebSocketManager
})()
