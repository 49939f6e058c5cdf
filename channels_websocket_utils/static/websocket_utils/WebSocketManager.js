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

  // The states of a manager. `state` of the class is the part before the dot.
  const ASKING = "connecting.token" // the manager requests a token
  const DIALING = "connecting.socket" // the socket is opening
  const PROVING = "connecting.proof" // the socket is open, but the server may still refuse the token
  const OPEN = "open" // messages are sent at once
  const WAITING = "waiting" // for the next dial
  const CLOSED = "closed" // until the constructor or reconnect() dials

  // Each of these ends the attempt. ASKING begins a new one.
  const ENDS = [ASKING, WAITING, CLOSED]

  // The states that may follow each state. enter() throws at any other.
  const FOLLOWERS = {
    [ASKING]: [DIALING, ...ENDS],
    [DIALING]: [PROVING, OPEN, ...ENDS],
    [PROVING]: [OPEN, ...ENDS],
    [OPEN]: ENDS,
    [WAITING]: ENDS,
    [CLOSED]: [ASKING, CLOSED],
  }

  // The states of a subscription. docs/client.rst draws them.
  const SUBSCRIBING = "subscribing" // messages of the topic are ignored, until the server has answered
  const LIVE = "live" // each message goes to the handler
  const ENDED = "ended" // for good

  // The keys of messages about topics.
  const UNSUBSCRIBED = "websocket.unsubscribed"
  const GAP = "websocket.gap"
  const TOPIC_KEYS = [UNSUBSCRIBED, GAP, "websocket.topic"]

  // After these errors the manager asks for a topic again.
  const PASSING = ["unavailable", "rate_limited", "timeout"]

  // JSON.stringify() escapes no other character so. An even number of backslashes before it is text.
  const LONE_SURROGATE = /[^\\](\\\\)*\\ud/

  const NO_FAILURES = { failures: 0, refusals: 0, ended: 0, urgent: true }

  // Of the document or of the window. A visible page is reported twice, by both, and the second time is harmless.
  const PAGE_EVENTS = ["visibilitychange", "resume", "freeze", "online", "offline", "pageshow", "pagehide"]

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

  const newError = (code, cause) => new WebSocketManagerError(code, code, cause && { cause })

  function newServerError(error) {
    const { code = "internal", message, ...more } = error || {}
    return new WebSocketManagerError(code, message, more)
  }

  function check(fact, claim, value) {
    if (fact) return
    throw new TypeError(`WebSocketManager: ${claim}, not ${value === null ? value : typeof value}`)
  }

  const durationOr = (value, usual) => (typeof value === "number" && value >= 0 ? value : usual)

  // The state of a manager, of an attempt and of a call. A field without a value is undefined at first.

  /**
   * @typedef {object} Manager
   * @property {string} url Of the socket, without a token.
   * @property {object} options Those of the class.
   * @property {function|undefined} ask Returns the token for one dial.
   * @property {string|undefined} token The string, until a dial uses it.
   * @property {string|undefined} usedToken That of the last dial.
   * @property {boolean} canRedial False if the string is the only token.
   *
   * @property {string} state Only enter() changes it.
   * @property {object} event The last "state" event.
   * @property {Attempt|null} attempt Null between two attempts.
   * @property {boolean} wasOpen A connection was open before.
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
   * @property {boolean|undefined} prefersOwn The endpoint refused the CSRF token of the cookie.
   * @property {string|undefined} lastIdentity The last one that was known, at first that of the page.
   * @property {string|undefined} queueIdentity Of the last connection, whose user filled the queue.
   *
   * @property {string} prefix Of all reply keys.
   * @property {Map<string, Call>} queue Calls that are not sent yet.
   * @property {Map<string, Call>} calls Calls that are sent and wait for a reply.
   * @property {Map<string, Map>} listeners Of pushed messages.
   * @property {Map<string, Map>} handlers Of "state" and "error".
   * @property {Map<string, Topic>} topics Those with subscriptions, and those that the manager leaves.
   * @property {Map<string, Position>} positions Of the page, by topic.
   * @property {function(Event)} handlePageEvent
   */
  function createManager(path, token, options, lastIdentity) {
    const url = resolve(path)
    const isFunction = typeof token === "function"
    const isValid = isFunction || token == null || typeof token === "string"
    check(isValid, "token must be a string, a function or null", token)
    const requestToken = ({ signal }) => requestFromEndpoint(manager, signal)
    const ask = isFunction ? token : options.tokenURL && requestToken
    const manager = {
      url,
      options,
      ask,
      token: !isFunction && token,
      canRedial: ask || !token,
      state: CLOSED,
      timerAt: Infinity,
      due: Infinity,
      ...NO_FAILURES,
      notBefore: 0,
      lastIdentity,
      prefix: Date.now() + `${Math.random()}`.slice(2),
      queue: new Map(),
      calls: new Map(),
      listeners: new Map(),
      handlers: new Map(),
      topics: new Map(),
      positions: new Map(Object.entries(JSON.parse(readPage("positions").positions || "{}"))),
      handlePageEvent: ({ type }) => handlePageEvent(manager, type),
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
   * @property {boolean} hasTopics As websocket.ready says.
   *
   * @property {number} receivedAt When the last message came. The next four count from there.
   * @property {number} calledAt When the last call was sent.
   * @property {number} pings
   * @property {number} pingedAt The first of these pings.
   * @property {number} pongBy
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
   * @property {number} staleAt The limit for the queue.
   * @property {function()} abort The listener of the signal.
   *
   * @property {Attempt} attempt That sent it.
   * @property {number} sentAt
   * @property {boolean} paced The server waits for credit.
   * @property {number} taken How many parts the reader has taken.
   *
   * @property {number} limit Of stream(): how long to wait for a part.
   * @property {boolean} done Of stream(): no more parts come.
   * @property {Error} error Of stream(): thrown after the last part.
   * @property {function()|null} wake Of stream(): resumes a reader that waits.
   */

  function resolve(path) {
    check(typeof path === "string", "path must be a string", path)
    let url
    try {
      // As a text, because the URL of React Native has no setters.
      url = new URL(path, globalThis.location?.href).href.replace(/^http/, "ws").replace(/#.*/, "")
    } catch {}
    if (/^wss?:/.test(url)) return url
    throw new TypeError("WebSocketManager: path must be a full wss: URL without a page")
  }

  // Handlers

  function guard(manager, handler, detail, isSilent) {
    try {
      return handler?.(detail)
    } catch (cause) {
      if (!isSilent) fail(manager, "handler_failed", cause)
    }
  }

  function log(manager, level, detail) {
    const write = () => {
      // A forgotten auto_route() or error handler is then visible in the browser.
      const logger = manager.options.logger ?? (level === "error" && !manager.handlers.has(level) && console)
      logger?.[level]?.("WebSocketManager", detail)
    }
    guard(manager, write, null, true)
  }

  function dispatch(manager, map, key, detail, isSilent) {
    // A copy: handlers may be added and removed meanwhile, and a removed one is not called.
    for (const [handler, undo] of [...(map.get(key) || [])]) {
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
    emit(manager, "error", newError(code, cause))
  }

  function checkHandler(key, handler) {
    check(typeof key === "string", "key must be a string", key)
    check(typeof handler === "function", "handler must be a function", handler)
  }

  function listen(map, key, handler, { once, signal } = {}) {
    checkHandler(key, handler)
    const handlers = map.get(key) || new Map()
    if (handlers.has(handler)) return handlers.get(handler)
    const undo = () => {
      signal?.removeEventListener("abort", undo)
      if (handlers.get(handler) === undo) handlers.delete(handler)
      if (!handlers.size && map.get(key) === handlers) map.delete(key)
    }
    undo.once = once
    if (signal?.aborted) return undo
    signal?.addEventListener("abort", undo)
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

  function stopTimer(manager) {
    clearTimeout(manager.timer)
    manager.timerAt = Infinity
  }

  // What the state does next. There is one plan at a time.
  function plan(manager, delay, act) {
    manager.due = clock() + delay
    manager.act = act
    wakeAt(manager, manager.due)
  }

  const deadline = (call) => Math.min(call.until, call.staleAt)

  function tick(manager) {
    stopTimer(manager)
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
    if (!FOLLOWERS[manager.state].includes(next)) {
      throw new Error(`WebSocketManager: ${manager.state} -> ${next}`)
    }
    if (ENDS.includes(next)) endAttempt(manager)
    manager.state = next
  }

  function announce(manager, reason = null, delay = 0) {
    manager.event = { state: publicState(manager), reason, attempt: manager.failures + 1, delay }
    emit(manager, "state", manager.event)
    // The connection of the topics is lost, or it has just opened and has none.
    for (const topic of manager.topics.values()) suspend(manager, topic, "disconnected")
  }

  const publicState = ({ state }) => state.split(".")[0]

  async function endAttempt(manager) {
    const { attempt, state } = manager
    manager.attempt = null
    manager.due = Infinity
    if (state === OPEN) manager.queueIdentity = attempt.identity || manager.options.identity
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
    stopTimer(manager)
    announce(manager, reason)
    rejectCalls(manager, rest, code)
    if (reason !== "closed" && reason !== "ended") fail(manager, reason, cause)
  }

  // Dialling

  // The only function that decides when the manager dials.
  function dialIn(manager, delay, reason) {
    if (!manager.canRedial && !manager.token) stop(manager, "no_token")
    else if (delay) wait(manager, delay, reason)
    else dial(manager, reason)
  }

  function wait(manager, delay, reason) {
    enter(manager, WAITING)
    plan(manager, delay, () => (isHidden() ? wait(manager, Infinity, "hidden") : dial(manager, reason)))
    announce(manager, reason, delay)
  }

  function retry(manager, reason, least, isUrgent) {
    const { attempt, failures } = manager
    if (failures >= (manager.options.maxRetries ?? Infinity)) return stop(manager, "max_retries")
    const own = guard(manager, manager.options.backoff, failures)
    if (attempt !== manager.attempt) return
    const pause = durationOr(own, randomPause(failures))
    const rest = durationOr(least, 0)
    manager.failures++
    manager.notBefore = clock() + rest
    // A pause of 0 becomes 1, because a hidden page does not dial after a pause.
    dialIn(manager, isUrgent ? 0 : pause + rest || 1, reason)
  }

  const randomPause = (failures) => 200 + Math.random() * Math.min(15000, 3000 * 1.4 ** failures)

  function dial(manager, reason) {
    enter(manager, ASKING)
    const attempt = (manager.attempt = { aborter: new AbortController(), calledAt: 0, pings: 0 })
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
      if (!token || typeof token !== "string" || token === manager.usedToken) throw new Error("No token")
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
    enter(manager, DIALING)
    manager.usedToken = token
    let socket
    try {
      const isOffered = token && manager.options.tokenSource === "subprotocol"
      const end = /\/*(?=\?|$)/
      const target = token && !isOffered ? url.replace(end, `/${encodeURIComponent(token)}`) : url
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
    const close = () => handleClose(manager, { code: 1006, reason: "", wasClean: false })
    socket.onerror = () => attempt === manager.attempt && plan(manager, CLOSE_LIMIT, close)
  }


  function handleOpen(manager) {
    const { attempt } = manager
    attempt.openedAt = clock()
    const known = manager.wasOpen ? manager.queueIdentity : manager.lastIdentity
    const needsIdentity = !attempt.identity && known
    attempt.unproven ||= manager.usedToken && manager.queue.size
    if (!attempt.unproven && !needsIdentity) return open(manager)
    enter(manager, PROVING)
    plan(manager, needsIdentity ? READY_LIMIT : PROOF_LIMIT, open)
  }

  // Sends the queue if its user is the user of this connection. From now on messages are sent at once.
  function open(manager) {
    const user = manager.attempt.identity || manager.options.identity
    const isSame = !manager.wasOpen || (user && user === manager.queueIdentity)
    const dropped = isSame ? [] : takeCalls(manager)
    enter(manager, OPEN)
    manager.wasOpen = true
    manager.due = Infinity
    flush(manager)
    announce(manager)
    rejectCalls(manager, dropped, "disconnected")
    tick(manager)
  }

  function learnIdentity(manager, identity) {
    const { attempt, lastIdentity } = manager
    if (!identity || attempt.identity) return
    attempt.identity = manager.lastIdentity = identity
    if (!lastIdentity || lastIdentity === identity) return
    manager.queueIdentity = identity
    forgetPositions(manager)
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
    dialIn(manager, ASK_AGAIN, "signed_out")
  }

  async function requestFromEndpoint(manager, signal, isSecond) {
    const { options, url } = manager
    const { csrfToken, tokenPath, tokenURL } = options
    // A tag that is rendered without a request has no CSRF token, but the names of cookie and header.
    const page = { ...readPage("socket-path"), ...readPage("csrf-token") }
    const { csrfToken: own, csrfCookie = "csrftoken", csrfHeader = "X-CSRFToken" } = page
    // Django reads the last of several cookies with one name.
    const [, ...cookies] = `; ${globalThis.document?.cookie}`.split(`; ${csrfCookie}=`)
    const known = (typeof csrfToken === "function" ? csrfToken() : csrfToken) || cookies.pop()?.split(";")[0]
    // The page's own token is old after a sign-in in another tab.
    const csrf = (manager.prefersOwn && own) || known || own
    const response = await fetch(tokenURL, {
      method: "POST",
      headers: { "Content-Type": "application/json", ...(csrf && { [options.csrfHeader ?? csrfHeader]: csrf }) },
      body: JSON.stringify({ path: tokenPath ?? url.replace(/^[^/]*\/\/[^/]*|\?.*/g, ""), url: tokenURL }),
      redirect: "manual", // fetch() fails if a login is at another origin
      signal,
    })
    const { ok, status, headers } = response
    if (status === 403 && known && own && !isSecond) {
      manager.prefersOwn = !manager.prefersOwn
      return requestFromEndpoint(manager, signal, true)
    }
    // The fetch() of React Native follows redirects and does not mention them. Its tokenURL is a full URL.
    const isMoved = response.redirected ?? (response.url && !response.url.startsWith(tokenURL))
    // In browsers a redirect has the status 0.
    const isPage = status < 400 && (!ok || /html/i.test(headers?.get("Content-Type")))
    const isLogin = isMoved ? status < 500 : isPage
    // A JSON error is dropped: it quotes the body, which may hold a token.
    const answer = status <= 400 && (await response.json().catch(() => null))
    if (ok && (answer?.token || !isLogin)) return answer
    throw Object.assign(new Error(`tokenURL answered ${status}`), {
      status: isLogin ? 401 : status,
      // Another 400 is that of a proxy, which may be gone at the next request.
      fatal: answer?.error?.code === "bad_message",
      retryAfter: headers?.get("Retry-After"),
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

  function watchPage({ handlePageEvent }, method) {
    for (const name of PAGE_EVENTS) {
      globalThis.document?.[method]?.(name, handlePageEvent)
      globalThis[method]?.(name, handlePageEvent)
    }
  }

  function handlePageEvent(manager, type) {
    if (type === "pagehide" || type === "freeze") return leavePage(manager)
    if (type === "visibilitychange" && isHidden()) return
    if (type === "online") manager.failures = 0
    ping(manager, WAKE_LIMIT)
    tick(manager)
    if (manager.state !== WAITING || isHidden() || type === "offline") return
    dialIn(manager, Math.max(0, manager.notBefore - clock()), "wake")
  }

  // Without a source of new tokens the connection stays, because no other could replace it.
  function leavePage(manager) {
    const isActive = manager.attempt || manager.due < Infinity
    if (manager.canRedial && isActive) loseConnection(manager, () => dialIn(manager, Infinity, "hidden"))
  }

  // Liveness

  function ping(manager, limit) {
    const { attempt } = manager
    if (!attempt?.ready) return
    const now = clock()
    if (attempt.pings && now < attempt.pongBy) {
      attempt.pongBy = Math.min(attempt.pongBy, now + limit)
    } else {
      if (!attempt.pings++) attempt.pingedAt = now
      attempt.pongBy = now + limit
      control(manager, "ping")
    }
    plan(manager, deathAt(manager) - now, checkConnection)
  }

  function deathAt({ attempt, calls }) {
    let last = attempt.calledAt
    for (const { sentAt } of calls.values()) last = Math.max(last, sentAt)
    // The second limit ends a dead connection on which calls are sent again and again.
    return Math.max(attempt.pongBy, Math.min(last, attempt.pingedAt + CALL_LIMIT) + CALL_LIMIT)
  }

  function checkConnection(manager, isLate) {
    const { pings, receivedAt } = manager.attempt
    const delay = (pings ? deathAt(manager) : receivedAt + SILENCE_LIMIT) - clock()
    if (delay > 0) plan(manager, delay, checkConnection)
    // After a sleep the timer is late, and the pong may wait in the event queue behind it.
    else if (!pings || (isLate && pings < 2)) ping(manager, isLate ? WAKE_LIMIT : PONG_LIMIT)
    else loseConnection(manager, () => retry(manager, "timeout"))
  }

  // Calls

  // A message of the package's protocol. One about a call goes only to the socket that sent the call.
  function control({ attempt }, type, call, more) {
    if (!attempt?.ready || (call && call.attempt !== attempt)) return
    attempt.socket.send(JSON.stringify({ type: `websocket.${type}`, reply_key: call?.key, ...more }))
  }

  const allCalls = ({ queue, calls }) => [...queue.values(), ...calls.values()]

  function release({ queue, calls }, { abort, key, signal }) {
    signal?.removeEventListener("abort", abort)
    return queue.delete(key) || calls.delete(key)
  }

  function takeCalls(manager, test = () => true) {
    return allCalls(manager).filter((call) => test(call) && release(manager, call))
  }

  function rejectCalls(manager, calls, code) {
    for (const call of calls) {
      control(manager, "cancel", call)
      call.reject(newError(code))
    }
  }

  // A closing socket drops messages without an error, and the buffer of a slow one grows without limit.
  function canSend(manager, { parts }) {
    const { attempt } = manager
    if (manager.state !== OPEN || attempt.socket.readyState > 1) return false
    if (attempt.socket.bufferedAmount > BUFFERED_BYTES) return false
    return !parts || attempt.ready || clock() >= attempt.openedAt + READY_LIMIT
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
    call.staleAt = Infinity
    call.sentAt = attempt.calledAt = clock()
    if (call.answer) manager.calls.set(call.key, call)
    call.paced = attempt.ready && call.streams
    // The text was made in submit(), so later changes of the message object have no effect.
    attempt.socket.send(call.paced ? `${call.text.slice(0, -1)},"credit":${CREDIT}}` : call.text)
  }

  const newKey = ({ prefix }) => `${prefix}.${++count}`

  function submit(manager, message, call) {
    message = message?.toJSON?.() ?? message
    check(typeof message?.type === "string", "type of the message must be a string", message?.type)
    call.key = newKey(manager)
    call.text = JSON.stringify(call.answer ? { ...message, reply_key: call.key } : message)
    if (LONE_SURROGATE.test(call.text)) {
      throw new WebSocketManagerError("bad_message", "The message is not valid Unicode")
    }
    if (manager.state === CLOSED) throw newError("closed")
    if (call.signal?.aborted) throw newError("aborted")
    flush(manager)
    if (manager.queue.size || !canSend(manager, call)) checkQueue(manager.queue, call)
    const now = clock()
    call.until = call.answer ? now + durationOr(call.timeout, REPLY_LIMIT) : Infinity
    call.staleAt = now + QUEUE_LIMIT
    call.taken = 0
    call.abort = () => release(manager, call) && rejectCalls(manager, [call], "aborted")
    call.signal?.addEventListener("abort", call.abort)
    manager.queue.set(call.key, call)
    flush(manager)
    wakeAt(manager, deadline(call))
    return call
  }

  function checkQueue(queue, call) {
    let bytes = (call.size = new TextEncoder().encode(call.text).length)
    for (const { size = 0 } of queue.values()) bytes += size
    if (queue.size >= QUEUE_MESSAGES || bytes > QUEUE_BYTES) throw newError("overflow")
  }

  // Called for each part that the reader takes. The credit goes to the server in steps.
  function addCredit(manager, call) {
    if (++call.taken % CREDIT_STEP || !call.paced || !manager.calls.has(call.key)) return
    control(manager, "more", call, { parts: CREDIT_STEP })
  }

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
    const { key } = message
    const isReady = key === "websocket.ready"
    if (isReady) {
      attempt.ready = true
      attempt.hasTopics = message.topics
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
    const call = manager.calls.get(key)
    const topic = manager.topics.get(message.topic)
    if (key === "websocket.error") emit(manager, "error", newServerError(message.error))
    else if (call) handleReply(manager, call, message)
    else if (topic?.isLive && TOPIC_KEYS.includes(key)) handleTopic(manager, topic, message)
    else dispatch(manager, manager.listeners, key, message)
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
    call.sentAt = 0 // a stream runs beside other calls and delays no pong
    call.answer(Object.keys(rest).join() === "data" ? rest.data : rest, more)
  }

  // Streams

  function createStream(manager, message, { timeout, signal }) {
    const call = {
      answer(value, more) {
        if (more !== false) call.parts.push(value)
        updateStream(manager, call, !more)
      },
      reject: (error) => updateStream(manager, call, true, error),
      signal,
      timeout: Infinity,
      limit: durationOr(timeout, Infinity),
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
      reader[method] = function (value) {
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
   * @property {boolean} isLive The server has agreed, and sends the message after `position` next.
   * @property {Position|null} position Null if the topic has no history.
   * @property {number} failures How often in a row the server has refused it for a while.
   * @property {number} askAt After such a refusal: when to ask again.
   */

  /**
   * @typedef {object} Position
   * @property {string} epoch
   * @property {number} offset
   */

  class Subscription {
    constructor(manager, topic, handler, since) {
      checkHandler(topic, handler)
      // The server refuses the whole message if one `since` has another form.
      check(!since || (typeof since.epoch === "string" && since.offset >= 0), "since must be a position", since)
      this.topic = topic
      this.state = SUBSCRIBING // only turn() changes it
      this.position = since || null
      this._manager = manager
      this._handler = handler
      this._handlers = new Map() // of "gap" and "state"
      this._lapse = since && "none_kept" // the reason of a gap for which the server gives none
    }

    on(event, handler, options) {
      return listen(this._handlers, event, handler, options)
    }

    unsubscribe() {
      endSubscription(this._manager, this, "unsubscribed")
    }
  }

  // True if a page at the position `one` has all messages up to the position `other`.
  const covers = (one, other) => one?.epoch === other?.epoch && one?.offset >= other?.offset

  function createSubscription(manager, name, handler, { signal, since = manager.positions.get(name) }) {
    const subscription = new Subscription(manager, name, handler, since)
    const abort = () => endSubscription(manager, subscription, "aborted")
    const topic = manager.topics.get(name) || { name, members: new Set(), failures: 0 }
    manager.topics.set(name, topic)
    topic.members.add(subscription)
    subscription._release = () => signal?.removeEventListener("abort", abort)
    signal?.addEventListener("abort", abort)
    if (signal?.aborted) abort()
    updateTopicsSoon(manager)
    return subscription
  }

  function endSubscription(manager, subscription, reason) {
    subscription._release()
    manager.topics.get(subscription.topic)?.members.delete(subscription)
    turn(manager, subscription, ENDED, reason)
    updateTopicsSoon(manager)
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
    const { attempt, topics } = manager
    if (!attempt?.ready) return
    if (!attempt.hasTopics) for (const topic of [...topics.values()]) refuse(manager, topic, { code: "unsupported" })
    if (allCalls(manager).some(({ isAboutTopics }) => isAboutTopics)) return
    const left = []
    const wanted = []
    for (const topic of [...topics.values()]) {
      const isAsked = topic.attempt === attempt
      if (isAsked && topic.askAt > clock()) wakeAt(manager, topic.askAt)
      else if (topic.members.size) join(manager, topic) || wanted.push(topic)
      else if (isAsked) left.push(topic)
      else topics.delete(topic.name)
    }
    const subscriptions = wanted.map((topic) => ({ topic: topic.name, since: (topic.asked = oldest(topic)) }))
    if (left.length) ask(manager, "unsubscribe", left, { topics: left.map(({ name }) => name) })
    if (wanted.length) ask(manager, "subscribe", wanted, { subscriptions })
  }

  // Makes all subscriptions live, and returns true, if the server need not be asked for a replay.
  function join(manager, topic) {
    const joining = [...topic.members].filter(({ state }) => state !== LIVE)
    const canJoin = topic.isLive && joining.every(({ position }) => !position || covers(position, topic.position))
    if (canJoin) for (const subscription of joining) goLive(manager, topic, subscription)
    return canJoin
  }

  // The position may be ahead of the topic's: deliver() then skips what the subscription does not miss.
  function goLive(manager, topic, subscription) {
    if (!topic.isLive) return
    if (!covers(subscription.position, topic.position)) subscription.position = topic.position
    subscription._lapse = "none_kept" // from now on messages can be missed
    turn(manager, subscription, LIVE)
  }

  // Returns the position of the first subscription that is not live, or the oldest of the same epoch.
  function oldest({ members }) {
    let found
    for (const { position, state } of members) if (position && state !== LIVE) found = found || position
    for (const { position } of members) if (covers(found, position)) found = position
    return found
  }

  function ask(manager, verb, topics, content) {
    const { attempt } = manager
    const call = {
      isAboutTopics: true,
      key: newKey(manager),
      attempt,
      sentAt: 0, // it runs beside other calls and delays no pong
      until: clock() + CALL_LIMIT,
      staleAt: Infinity,
      answer(data) {
        for (const topic of topics) {
          if (attempt !== manager.attempt) return
          if (verb === "unsubscribe") topic.attempt = null
          else handleAnswer(manager, topic, data)
        }
        updateTopics(manager)
      },
      reject(error) {
        for (const topic of topics) if (attempt === manager.attempt) refuse(manager, topic, error)
      },
    }
    manager.calls.set(call.key, call)
    control(manager, verb, call, content)
    wakeAt(manager, call.until)
    for (const topic of topics) {
      topic.attempt = attempt
      suspend(manager, topic)
    }
  }

  function suspend(manager, topic, reason) {
    topic.isLive = false
    for (const subscription of [...topic.members]) turn(manager, subscription, SUBSCRIBING, reason)
  }

  // The answer is about the position `asked`. A subscription with another one may stay as it is: join() refuses
  // it, and the manager asks again.
  function handleAnswer(manager, topic, data) {
    const answer = data?.subscriptions?.find?.((each) => each?.topic === topic.name)
    const { error, epoch, offset, recovered, reason, messages = [] } = answer || { error: { code: "unavailable" } }
    if (error) return refuse(manager, topic, error)
    const { asked } = topic
    Object.assign(topic, { isLive: true, position: epoch ? { epoch, offset } : null, failures: 0 })
    for (const subscription of [...topic.members]) {
      const { position } = subscription
      if (recovered && covers(position, asked)) {
        for (const message of messages) deliver(manager, topic, subscription, message)
      } else if (!position || (covers(position, asked) && covers(asked, position))) {
        skip(manager, topic, subscription, position && reason)
      } else continue
      goLive(manager, topic, subscription)
    }
  }

  // The position moves first, so that a handler that throws is not called again.
  function deliver(manager, topic, subscription, { offset, data }) {
    // An earlier handler may have ended the subscription or the connection.
    if (!topic.isLive || subscription.state === ENDED || offset <= subscription.position?.offset) return
    if (topic.position) subscription.position = { epoch: topic.position.epoch, offset }
    // The server sends no data to the connection that `exclude` names.
    if (data) guard(manager, () => subscription._handler(data, { offset, topic: topic.name }))
  }

  function skip(manager, { position }, subscription, reason) {
    const { _lapse, _handlers } = subscription
    subscription.position = position
    if (_lapse) dispatch(manager, _handlers, "gap", { position, reason: reason || _lapse })
  }

  // Handles a message about a topic that is live.
  function handleTopic(manager, topic, message) {
    const { key, epoch, offset, reason, error } = message
    if (key === UNSUBSCRIBED) return refuse(manager, topic, error || {})
    const isGap = key === GAP
    // The server leaves out no message.
    if (topic.position) topic.position = { epoch: isGap ? epoch : topic.position.epoch, offset }
    for (const subscription of [...topic.members]) {
      if (subscription.state !== LIVE) continue
      if (!isGap) deliver(manager, topic, subscription, message)
      else if (!covers(subscription.position, topic.position)) skip(manager, topic, subscription, reason)
    }
  }

  function refuse(manager, topic, { code = "internal", message }) {
    const error = new WebSocketManagerError(code, message, { topic: topic.name })
    if (PASSING.includes(code)) {
      log(manager, "warn", error)
      topic.askAt = clock() + randomPause(topic.failures++)
      suspend(manager, topic, code)
      return updateTopicsSoon(manager)
    }
    manager.topics.delete(topic.name)
    for (const subscription of [...topic.members]) {
      const isHeard = subscription._handlers.has("state")
      endSubscription(manager, subscription, code)
      if (!isHeard) emit(manager, "error", error)
    }
  }

  // A position says what the page of the earlier user has shown.
  function forgetPositions({ positions, topics }) {
    positions.clear()
    for (const { members } of topics.values()) {
      for (const subscription of members) {
        subscription.position = null
        subscription._lapse = subscription._lapse && "identity"
      }
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
      const isValid = !replyHandler || typeof replyHandler === "function"
      check(isValid, "replyHandler must be a function", replyHandler)
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
    request(message, { timeout, signal } = {}) {
      return new Promise((answer, reject) => {
        submit(this._manager, message, { answer, reject, timeout, signal })
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
      if (manager.state === CLOSED) watchPage(manager, "addEventListener")
      loseConnection(manager, () => {
        Object.assign(manager, NO_FAILURES)
        dialIn(manager, 0, "reconnect")
      })
    },
  }

  WebSocketManager.WebSocketManagerError = WebSocketManagerError

  const isCommonJS = typeof module === "object" && module.exports
  if (isCommonJS) module.exports = WebSocketManager.default = WebSocketManager
  // In a page of Electron with node integration, `module` is a global, and other scripts need the class.
  if (!isCommonJS || globalThis.module) globalThis.WebSocketManager = WebSocketManager
})()
