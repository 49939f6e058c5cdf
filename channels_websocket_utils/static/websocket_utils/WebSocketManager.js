/*
 * WebSocketManager: one WebSocket that comes back, with replies and pushes sent to functions.
 *
 * States.  connecting -> open -> waiting -> connecting ..., and closed from anywhere. Each dial is
 * an attempt with its own AbortController: what an aborted attempt still says (a late token, a late
 * open, a late frame) is dropped. leave() is the only way out of an attempt and clears every timer.
 *
 * Dialling.  dialIn() alone decides when. An attempt (token, dial, open) has 10 s. The wait after a
 * failure is 200 ms + random(0, min(15 s, 3 s * 1.4^n)); n falls to 0 after 5 s open, not on open:
 * a server that accepts and then drops must not be stormed.
 *
 * Tokens.  A token opens one socket, so none is ever dialled twice. A string serves the first dial
 * only; later ones ask the tokenURL, and without one the first loss ends in closed ("no_token"). A
 * token function, or else the tokenURL, is asked once a dial. Status 401 ("signed_out") or 403, or
 * an error with `fatal` ("token_refused"), stops; any other failure is a failed dial (`Retry-After`,
 * `error.retryAfter`: seconds).
 *
 * A refusal comes as open, then 4401. The first dial's string may be old, so what is queued waits for
 * the server's first word, or 100 ms, lest it is lost with a socket that was never meant to stand.
 *
 * Close codes.  judge() alone decides what one means. Stop: 1000 1002 1003 1007 1009 1010 4400 4403
 * 4409. 4401 (token refused): a fresh token, at most 2 in a row. 4410 (session ended): ask for a
 * token at once, once more after 3 s if refused, then stop. 4429: at least 30 s. Others: retry.
 *
 * Calls.  A message that cannot be sent now is queued: 100 messages, 1 MiB, 60 s at most. A call is
 * settled once: by its reply, its time limit, its signal, or the loss of the link. A frame that was
 * sent is never sent again, and one whose caller was told of a failure is never sent at all.
 *
 * Users.  Another user may have signed in while the link was down. After a reconnect the queue is
 * sent only if the identity is known to be the same: as the token's answer tells, else the server's
 * websocket.ready (waited for 1 s), else options.identity. Known to differ: all calls are rejected
 * and the manager stops ("user_changed"). Not known: what was queued is rejected ("disconnected").
 */
!(function () {
  "use strict"

  const ATTEMPT_LIMIT = 10000
  const REPLY_LIMIT = 10000
  const QUEUE_LIMIT = 60000
  const QUEUE_MESSAGES = 100
  const QUEUE_BYTES = 1048576
  const STEADY_AFTER = 5000
  const READY_LIMIT = 1000
  const PROOF_LIMIT = 100
  const ASK_AGAIN = 3000
  const TOO_MANY_WAIT = 30000
  const LONGEST_TIMER = 2147483647 // a longer one would fire at once

  const STOPS = { 1000: "ended", 4400: "bad_message", 4403: "refused", 4409: "replaced" }
  for (const code of [1002, 1003, 1007, 1009, 1010]) STOPS[code] = "protocol_error"

  // Page-wide, so that two managers born in the same moment still have different keys.
  let count = 0

  /** What a call fails with and on("error") hears; `code` says what happened. */
  class WebSocketManagerError extends Error {
    constructor(code, message = code, more) {
      super(message)
      this.name = "WebSocketManagerError"
      this.code = code
      Object.assign(this, more)
    }
  }

  const fault = (code, cause) => new WebSocketManagerError(code, code, cause && { cause })

  function serverFault(error) {
    const { code = "internal", message, id } = error || {}
    return new WebSocketManagerError(code, message, id && { id })
  }

  function demand(fact, claim, value) {
    if (fact) return
    throw new TypeError(`WebSocketManager: ${claim}, not ${value === null ? value : typeof value}`)
  }

  function resolve(path) {
    demand(typeof path === "string", "path must be a string", path)
    let url
    try {
      url = new URL(path, globalThis.location?.href)
      url.protocol = url.protocol.replace("http", "ws")
      url.hash = ""
    } catch {}
    if (/^wss?:/.test(url)) return url
    throw new TypeError("WebSocketManager: path must be a full wss: URL without a page")
  }

  function createLink(path, token, options) {
    const url = resolve(path)
    const asks = typeof token === "function"
    demand(asks || token == null || typeof token === "string", "token must be a string, a function or null", token)
    const ask = asks ? token : options.tokenURL && askEndpoint
    const prefix = Date.now().toString(36) + Math.random().toString(36).slice(2)
    const calls = new Map() // by key: queued ones, and sent ones that wait for a reply
    const listeners = new Map()
    const events = new Map()

    let state
    let attempt // the AbortController of the present dial
    let socket
    let timer // the one the state needs: attempt limit, steadiness or the wait
    let readyTimer
    let live = false // open, and the queue is settled
    let unproven // dialled with a string token, which may have grown old in the page
    let unusedToken = !asks && token

    let failures = 0 // since a connection last stood
    let refusals = 0 // 4401 in a row
    let prompt = true // a dial at once is free: 4401 and 4410 may not storm either
    let ended = 0 // 4410, then refused once

    let wasOpen
    let identity // as this attempt has told
    let lastIdentity = options.identity // the last one told by anybody
    let queueIdentity // of the connection before, whose user the queue belongs to

    // Telling

    function guard(handler, detail, quiet) {
      try {
        return handler?.(detail)
      } catch (cause) {
        if (!quiet) emit("error", fault("handler_failed", cause))
      }
    }

    function log(level, detail) {
      guard(() => options.logger?.[level]?.("WebSocketManager", detail), null, true)
    }

    function dispatch(map, key, detail, quiet) {
      // A copy: handlers may add and remove while they run, and a removed one runs no more.
      for (const [handler, undo] of [...(map.get(key) || [])]) {
        if (map.get(key)?.get(handler) !== undo) continue
        if (undo.once) undo()
        guard(handler, detail, quiet)
      }
    }

    function emit(event, detail) {
      log(event === "error" ? event : "debug", detail)
      dispatch(events, event, detail, event === "error")
    }

    function subscribe(map, key, handler, { once, signal } = {}) {
      demand(typeof key === "string", "key must be a string", key)
      demand(typeof handler === "function", "handler must be a function", handler)
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

    // The state machine

    function change(next, reason = null, delay = 0) {
      state = next
      emit("state", { state, reason, attempt: failures + 1, delay })
    }

    function leave() {
      if (state === "open") queueIdentity = identity ?? options.identity
      attempt?.abort()
      clearTimeout(timer)
      clearTimeout(readyTimer)
      live = false
      socket?.close()
      socket = null
    }

    function stop(reason, cause) {
      const code = reason === "no_token" || reason === "user_changed" ? reason : "closed"
      const rest = take()
      leave()
      change("closed", reason)
      tell(rest, code)
      if (reason !== "closed" && reason !== "ended") emit("error", fault(reason, cause))
    }

    // The one place that decides when to dial.
    function dialIn(delay, reason) {
      if (token && !ask && !unusedToken) return stop("no_token")
      leave()
      if (!delay) return dial(reason)
      timer = setTimeout(dial, Math.min(delay, LONGEST_TIMER), reason)
      change("waiting", reason, delay)
    }

    function retry(reason, least, atOnce) {
      if (failures >= (options.maxRetries ?? Infinity)) return stop("max_retries")
      const { signal } = attempt
      const own = guard(options.backoff, failures)
      if (signal.aborted) return
      const valid = typeof own === "number" && own >= 0
      const pause = valid ? own : 200 + Math.random() * Math.min(15000, 3000 * 1.4 ** failures)
      failures++
      dialIn(atOnce ? 0 : pause + (least > 0 ? least : 0), reason)
    }

    async function dial(reason) {
      attempt = new AbortController()
      const { signal } = attempt
      const target = new URL(url)
      identity = undefined
      timer = setTimeout(retry, ATTEMPT_LIMIT, "timeout")
      change("connecting", reason)
      if (signal.aborted) return

      let given = (unproven = unusedToken)
      unusedToken = ""
      // Even what fails at once fails later, when who made the manager listens.
      if (!given && ask) {
        let answer
        try {
          answer = await (async () => ask({ attempt: failures + 1, signal }))()
          given = answer?.token ?? answer
          if (!given || typeof given !== "string") throw new Error("No token")
        } catch (error) {
          return signal.aborted || judgeRefusal(error || {})
        }
        if (signal.aborted) return
        ended = 0
        learn(answer.identity)
        if (signal.aborted) return
      }

      let link
      try {
        if (given) target.pathname = url.pathname.replace(/\/*$/, "/") + encodeURIComponent(given)
        link = socket = new WebSocket(target.href)
      } catch {
        // What the browser says here holds the URL, and with it the token.
        await null
        return signal.aborted || retry("disconnected")
      }
      link.onopen = () => (signal.aborted ? link.close() : opened())
      link.onmessage = (event) => signal.aborted || receive(event.data)
      link.onclose = (event) => signal.aborted || judge(event)
    }

    function forgive() {
      failures = refusals = ended = 0
      prompt = true
    }

    function opened() {
      clearTimeout(timer)
      timer = setTimeout(forgive, STEADY_AFTER)
      if (!unproven && (!wasOpen || identity != null || queueIdentity == null)) return admit()
      readyTimer = setTimeout(admit, unproven ? PROOF_LIMIT : READY_LIMIT)
      unproven || change("open")
    }

    // Sends the queue if it is this connection's user's, and from here on messages go out directly.
    function admit() {
      clearTimeout(readyTimer)
      const user = identity ?? options.identity
      const same = !wasOpen || (user != null && user === queueIdentity)
      // By the clock: a timer stands still while the machine sleeps.
      const dropped = take((call) => !same || Date.now() > call.until)
      wasOpen = live = true
      for (const call of calls.values()) sendable() && transmit(call)
      if (state !== "open") change("open")
      tell(dropped, same ? "timeout" : "disconnected")
    }

    function learn(word) {
      if (word == null || identity != null) return
      identity = word
      const known = lastIdentity
      lastIdentity = word
      if (known == null || known === word) return
      queueIdentity = word
      if (!options.allowUserChange) return stop("user_changed")
      tell(take(), "user_changed")
      emit("error", fault("user_changed"))
    }

    // The one place that decides what a close code means.
    function judge(event) {
      const { signal } = attempt
      const wish = guard(options.shouldReconnect, event)
      if (signal.aborted) return
      const { code } = event
      const fresh = code === 4401 || code === 4410
      let reason = STOPS[code]
      if (code === 4401 && ++refusals > 2) reason = "token_refused"
      if (wish === false) reason = reason || "declined"
      if (wish === true) reason = undefined
      if (code === 4410) ended = 1
      const atOnce = fresh && prompt
      if (fresh) prompt = false

      const lost = take((call) => call.sent)
      if (reason) stop(reason)
      else retry("disconnected", code === 4429 && TOO_MANY_WAIT, atOnce)
      tell(lost, "disconnected")
    }

    // What it means that no token was to be had.
    function judgeRefusal(error) {
      const { fatal, status, retryAfter } = error
      if (!fatal && status !== 401 && status !== 403) {
        log("warn", error)
        return retry("token_failed", retryAfter * 1000)
      }
      if (ended !== 1) return stop(ended || status === 401 ? "signed_out" : "token_refused", error)
      ended = 2
      dialIn(ASK_AGAIN, "signed_out")
    }

    async function askEndpoint({ signal }) {
      const page = globalThis.document
      const { csrfToken } = options
      const csrf =
        (typeof csrfToken === "function" ? csrfToken() : csrfToken) ||
        // Before the page's own, which is stale once somebody has signed in from another tab.
        /(?:^|; *)csrftoken=([^;]*)/.exec(page?.cookie)?.[1] ||
        page?.querySelector("[data-csrf-token]")?.getAttribute("data-csrf-token")
      const response = await fetch(options.tokenURL, {
        method: "POST",
        credentials: "same-origin",
        headers: { "Content-Type": "application/json", ...(csrf && { "X-CSRFToken": csrf }) },
        body: JSON.stringify({ path: url.pathname }),
        signal,
      })
      // A JSON error would quote what it read, and that may hold a token.
      if (response.ok) return response.json().catch(() => null)
      const { status, headers } = response
      const retryAfter = headers?.get("Retry-After")
      throw Object.assign(new Error(`tokenURL answered ${status}`), { status, retryAfter })
    }

    // Calls

    const sendable = () => live && !(socket.readyState > 1) // a closing socket drops silently

    function release(call) {
      clearTimeout(call.timer)
      clearTimeout(call.queueTimer)
      call.signal?.removeEventListener("abort", call.abort)
      return calls.delete(call.key)
    }

    const take = (test = () => true) => [...calls.values()].filter((call) => test(call) && release(call))

    const tell = (taken, code) => taken.forEach((call) => call.reject(fault(code)))

    function fail(call, code) {
      if (release(call)) call.reject(fault(code))
    }

    function transmit(call) {
      clearTimeout(call.queueTimer)
      socket.send(call.frame)
      call.sent = true
      if (!call.awaits) release(call)
    }

    function submit(message, answer, reject, awaits, timeout = REPLY_LIMIT, signal) {
      demand(typeof message?.type === "string", "type of the message must be a string", message?.type)
      if (state === "closed") throw fault("closed")
      if (signal?.aborted) throw fault("aborted")
      const key = `${prefix}.${++count}`
      const frame = JSON.stringify(awaits ? { ...message, reply_key: key } : message)
      const call = { key, frame, answer, reject, awaits, signal, abort: () => fail(call, "aborted") }
      const direct = sendable()
      if (!direct) {
        const queued = [...calls.values()].filter((other) => !other.sent)
        call.size = new TextEncoder().encode(frame).length
        const bytes = queued.reduce((sum, { size }) => sum + size, call.size)
        if (queued.length >= QUEUE_MESSAGES || bytes > QUEUE_BYTES) throw fault("overflow")
        call.queueTimer = setTimeout(fail, QUEUE_LIMIT, call, "timeout")
        call.until = Date.now() + Math.min(QUEUE_LIMIT, awaits ? timeout : QUEUE_LIMIT)
      }
      calls.set(key, call)
      if (awaits && timeout <= LONGEST_TIMER) call.timer = setTimeout(fail, timeout, call, "timeout")
      signal?.addEventListener("abort", call.abort)
      if (direct) transmit(call)
      return direct
    }

    function receive(data) {
      refusals = 0
      let frame
      try {
        frame = JSON.parse(data)
      } catch {}
      if (!frame || typeof frame !== "object" || Array.isArray(frame)) {
        return emit("error", fault("bad_message"))
      }
      const { key, ...rest } = frame
      const isReady = key === "websocket.ready"
      if (isReady) learn(frame.identity)
      if (!live && state !== "closed" && (isReady || unproven)) admit()
      if (key === "websocket.error") return emit("error", serverFault(frame.error))
      const call = calls.get(key)
      if (!call?.sent) return dispatch(listeners, key, frame)
      release(call)
      if (frame.error) return call.reject(serverFault(frame.error))
      call.answer(Object.keys(rest).join() === "data" ? rest.data : rest)
    }

    dial("start")

    return {
      state: () => state,

      /**
       * Send `message`; its reply goes to `replyHandler`, its failure to on("error").
       *
       * Returns true if it was sent, false if it is queued. Throws a WebSocketManagerError:
       * `overflow` if the queue is full, `closed` if the manager is.
       */
      sendJSON(message, replyHandler) {
        demand(!replyHandler || typeof replyHandler === "function", "replyHandler must be a function", replyHandler)
        const answer = (value) => guard(replyHandler, value)
        return submit(message, answer, (error) => emit("error", error), !!replyHandler)
      },

      /**
       * Send `message` and return a promise of its reply, rejected with a WebSocketManagerError.
       *
       * @param {object} message
       * @param {{timeout?: number, signal?: AbortSignal}} [options] The time limit is 10 s by default.
       */
      request: (message, { timeout, signal } = {}) =>
        new Promise((answer, reject) => {
          submit(message, answer, reject, true, timeout, signal)
        }),

      /**
       * Call `handler` with every frame that the server pushes under `key`; returns the undo.
       *
       * @param {string} key
       * @param {function(object)} handler
       * @param {{once?: boolean, signal?: AbortSignal}} [options]
       */
      addMessageListener: (...args) => subscribe(listeners, ...args),

      /** Undo addMessageListener(). */
      removeMessageListener: (key, handler) => listeners.get(key)?.get(handler)?.(),

      /**
       * Hear "state" ({state, reason, attempt, delay}) or "error" (a WebSocketManagerError); returns
       * the undo.
       */
      on: (...args) => subscribe(events, ...args),

      /** Close for good: calls are rejected as `closed`, no timer is left. */
      close() {
        if (state !== "closed") stop("closed")
      },

      /** Dial anew at once, from any state. */
      reconnect() {
        const lost = take((call) => call.sent)
        forgive()
        dialIn(0, "reconnect")
        tell(lost, "disconnected")
      },
    }
  }

  /**
   * A WebSocket that comes back. May be called without `new`.
   *
   * @param {string} path Path or full URL of the socket; the token is added as its last part.
   * @param {string|function({attempt: number, signal: AbortSignal})|null} [token] A string for the
   *   first dial, or a function asked once a dial that returns (a promise of) a token or
   *   `{token, identity}`. A thrown `status` 401 or 403, or `fatal`, stops; `retryAfter` is seconds.
   * @param {object} [options]
   * @param {string} [options.tokenURL] The endpoint that issues tokens.
   * @param {string|function(): string} [options.csrfToken] For the tokenURL; else the cookie, else
   *   the first `data-csrf-token` attribute in the page, for a cookie that is HttpOnly.
   * @param {string} [options.identity] Whose page this is, where neither token nor server tell.
   * @param {boolean} [options.allowUserChange] Go on when another user has signed in.
   * @param {number} [options.maxRetries] Failed dials in a row before it stops; no limit by default.
   * @param {function(number): number} [options.backoff] Milliseconds to wait after n failures.
   * @param {function(CloseEvent): boolean} [options.shouldReconnect] true or false overrides what
   *   the close code means.
   * @param {object} [options.logger] Something like `console`; nothing is logged without it.
   */
  function WebSocketManager(path, token = null, options = {}) {
    if (!new.target) return new WebSocketManager(path, token, options)
    this._link = createLink(path, token, options)
  }

  // On the prototype, so that a subclass can override them and call super.
  const methods = ["sendJSON", "request", "addMessageListener", "removeMessageListener", "on", "close", "reconnect"]
  for (const name of methods) {
    WebSocketManager.prototype[name] = function (...args) {
      return this._link[name](...args)
    }
  }

  Object.defineProperty(WebSocketManager.prototype, "state", {
    /** "connecting", "open", "waiting" or "closed". */
    get() {
      return this._link.state()
    },
  })

  WebSocketManager.WebSocketManagerError = WebSocketManagerError

  if (typeof module === "object" && module.exports) {
    module.exports = WebSocketManager.default = WebSocketManager
  } else {
    globalThis.WebSocketManager = WebSocketManager
  }
})()
