/*
 * The types of WebSocketManager.js.
 *
 * Calls and pushes may be described, each with an interface. A method of Calls looks like the method
 * of the consumer: what it takes is the message without `type`, what it returns is the reply.
 *
 *   interface Calls {
 *     post_note(message: { text: string }): { id: number }
 *     leave(): void
 *     count(message: { to: number }): AsyncIterable<number>
 *   }
 *   interface Pushes {
 *     note: { id: number; text: string }
 *   }
 *   const manager = new WebSocketManager<Calls, Pushes>("/ws/notes/")
 *
 *   const { id } = await manager.request({ type: "post_note", text: "Hello" })
 *   for await (const part of manager.stream({ type: "count", to: 3 })) console.log(part)
 *   manager.addMessageListener("note", (note) => console.log(note.text))
 *
 * Without them every message may be sent, and what comes back is `any`. No lib is asked for but
 * ES2018: the types of the DOM, or of Node, are used where the project has them.
 */

/**
 * A WebSocket that comes back. May be called without `new`.
 *
 * @typeParam Calls - The consumer's methods: see the top of this file.
 * @typeParam Pushes - What the server pushes: the payload of each key.
 * @param path - Path or full URL of the socket; the token is added as its last part. Without one it is
 *   read from the page, with the token and the options of the same names: the first script,
 *   or the body, with a `data-socket-path`, `data-token`, `data-token-url`, `data-token-source`.
 * @param token - A string for the first dial, or a function that is asked once a dial.
 */
declare function WebSocketManager<
  Calls extends WebSocketManager.CallMap<Calls> = any,
  Pushes extends object = any,
>(
  path?: string | null,
  token?: WebSocketManager.Token,
  options?: WebSocketManager.Options,
): WebSocketManager<Calls, Pushes>

declare class WebSocketManager<
  Calls extends WebSocketManager.CallMap<Calls> = any,
  Pushes extends object = any,
> {
  /**
   * @param path - Path or full URL of the socket; the token is added as its last part. Without one it
   *   is read from the page.
   * @param token - A string for the first dial, or a function that is asked once a dial.
   */
  constructor(path?: string | null, token?: WebSocketManager.Token, options?: WebSocketManager.Options)

  get state(): WebSocketManager.State

  /**
   * Send `message`; its reply, or each part of a stream, goes to `replyHandler`, its failure to
   * `on("error")`.
   *
   * @returns `true` if it was sent, `false` if it is queued.
   * @throws {@link WebSocketManager.WebSocketManagerError} `overflow` if the queue is full, `closed`
   *   if the manager is.
   */
  sendJSON<Name extends WebSocketManager.CallName<Calls>>(
    message: WebSocketManager.Message<Calls, Name>,
    replyHandler?: ((reply: WebSocketManager.Part<Calls, Name>) => void) | null,
  ): boolean

  /** Send `message` and return a promise of its reply, rejected with a `WebSocketManagerError`. */
  request<Name extends WebSocketManager.RequestName<Calls>>(
    message: WebSocketManager.Message<Calls, Name>,
    options?: WebSocketManager.RequestOptions,
  ): Promise<WebSocketManager.Reply<Calls, Name>>

  /**
   * Send `message` and return its parts: `for await (const part of manager.stream(message))`.
   *
   * It is sent, or queued, at once. What came before an error is delivered before it is thrown.
   * Leaving the loop cancels the stream on the server. A method that does not stream gives one part.
   */
  stream<Name extends WebSocketManager.CallName<Calls>>(
    message: WebSocketManager.Message<Calls, Name>,
    options?: WebSocketManager.StreamOptions,
  ): WebSocketManager.Stream<WebSocketManager.Part<Calls, Name>>

  /** Call `handler` with every frame that the server pushes under `key`; returns the undo. */
  addMessageListener<Key extends WebSocketManager.PushKey<Pushes>>(
    key: Key,
    handler: (message: WebSocketManager.Push<Pushes, Key>) => void,
    options?: WebSocketManager.ListenerOptions,
  ): () => void

  /** Undo `addMessageListener()`. */
  removeMessageListener<Key extends WebSocketManager.PushKey<Pushes>>(
    key: Key,
    handler: (message: WebSocketManager.Push<Pushes, Key>) => void,
  ): void

  /** Hear `"state"`, or `"error"`, which is whatever nobody else handles; returns the undo. */
  on<Event extends keyof WebSocketManager.Events>(
    event: Event,
    handler: (detail: WebSocketManager.Events[Event]) => void,
    options?: WebSocketManager.ListenerOptions,
  ): () => void

  /** Close for good: calls are rejected as `closed`, no timer and no listener of the page is left. */
  close(): void

  /** Dial anew at once, from any state. */
  reconnect(): void
}

declare namespace WebSocketManager {
  export { WebSocketManager as default }

  /** What a call fails with and `on("error")` hears; `code` says what happened. */
  export class WebSocketManagerError extends Error {
    constructor(code: ErrorCode, message?: string, more?: object)
    name: "WebSocketManagerError"
    code: ErrorCode
    /** Of the server's log, with the code `internal`. */
    id?: string
    cause?: unknown
  }

  /**
   * - `connecting`: a token is asked for, or a dial is under way
   * - `open`
   * - `waiting`: for the next dial
   * - `closed`: for good, unless `reconnect()` is called
   */
  export type State = "connecting" | "open" | "waiting" | "closed"

  /** Why it stopped, in a `closed` event and as the code of the error beside it. */
  export type StopReason =
    | "closed" // by close(), which is no error
    | "ended" // 1000: the server has no more to say, which is no error
    | "signed_out"
    | "token_refused"
    | "no_token" // a string token opens one socket only, and there is no tokenURL
    | "user_changed"
    | "refused" // 4403
    | "replaced" // 4409
    | "bad_message" // 4400
    | "protocol_error" // 1002 1003 1007 1009 1010
    | "declined" // by shouldReconnect()
    | "max_retries"

  /** Why the state is what it is. */
  export type Reason =
    | StopReason
    | "start"
    | "disconnected"
    | "timeout" // of a dial, or of a link that gave no sign of life
    | "token_failed"
    | "hidden" // nobody dials for a page that is not seen
    | "wake"
    | "reconnect"

  export interface StateEvent {
    state: State
    reason: Reason | null
    /** 1 for the first dial, and one more than the failures since a connection last stood. */
    attempt: number
    /** Milliseconds until the next dial in `waiting`, `Infinity` while the page is hidden. */
    delay: number
  }

  /** What the manager says of a call, or of itself. */
  export type ManagerErrorCode =
    | StopReason
    | "timeout"
    | "disconnected"
    | "overflow"
    | "aborted"
    | "stream" // request() of a method that streams: use stream()
    | "handler_failed" // a handler threw `cause`

  /** What the server says. */
  export type ServerErrorCode =
    | "bad_message"
    | "unknown_type"
    | "permission_denied"
    | "unauthenticated"
    | "invalid"
    | "too_large"
    | "rate_limited"
    | "unavailable"
    | "internal"

  /** A server of your own may say others. */
  export type ErrorCode = ManagerErrorCode | ServerErrorCode | (string & {})

  export interface Events {
    state: StateEvent
    error: WebSocketManagerError
  }

  export type Token = string | TokenFunction | null | undefined

  /**
   * Asked once before each dial.
   *
   * An error that it throws may say more, as {@link TokenError}; any other is a failed dial.
   */
  export type TokenFunction = (question: TokenQuestion) => TokenAnswer | PromiseLike<TokenAnswer>

  export interface TokenQuestion {
    /** 1 for the first dial, and one more than the failures since a connection last stood. */
    attempt: number
    /** Aborted when the answer is no longer needed. */
    signal: Signal
  }

  /** A token, alone or with the name of its user. */
  export type TokenAnswer = string | { token: string; identity?: string | null | undefined }

  /** What the manager reads of an error that a token function throws. */
  export interface TokenError {
    /** 401 (`signed_out`) and 403 (`token_refused`) stop. */
    status?: number
    /** Stops as `token_refused`. */
    fatal?: boolean
    /** Seconds. */
    retryAfter?: number | string | null
  }

  export interface Options {
    /** The endpoint that issues tokens. */
    tokenURL?: string | null | undefined
    /**
     * `"subprotocol"` offers the token as one, which keeps it out of the URL; the gate must name that
     * source. By default `"path"`.
     */
    tokenSource?: "path" | "subprotocol" | undefined
    /**
     * For the `tokenURL`; else the cookie, else the first `data-csrf-token` attribute in the page, for
     * a cookie that is HttpOnly.
     */
    csrfToken?: string | (() => string | null | undefined) | null | undefined
    /** Whose page this is, where the token's answer does not tell: the same text as the server's. */
    identity?: string | null | undefined
    /** Go on when another user has signed in. */
    allowUserChange?: boolean | undefined
    /** How often it dials again in a row, the first after a loss among them; no limit by default. */
    maxRetries?: number | undefined
    /** Milliseconds to wait after `failures` failed dials; `undefined` for the usual wait. */
    backoff?: ((failures: number) => number | undefined) | undefined
    /** `true` or `false` overrides what the close code means. */
    shouldReconnect?: ((event: Close) => boolean | undefined) | undefined
    /** Something like `console`; nothing is logged without it. */
    logger?: Logger | undefined
  }

  export interface Logger {
    debug?(...data: any[]): void
    warn?(...data: any[]): void
    error?(...data: any[]): void
  }

  export interface RequestOptions {
    /** Milliseconds until the call fails as `timeout`; 10,000 by default. */
    timeout?: number | undefined
    /** Its abort ends the call as `aborted`. */
    signal?: SignalLike | null | undefined
  }

  export interface StreamOptions {
    /**
     * Milliseconds for each part, until the stream fails as `timeout`: while the reader waits, or while
     * it takes nothing and the server may send no more. No limit by default.
     */
    timeout?: number | undefined
    /** Its abort ends the stream as `aborted`. */
    signal?: SignalLike | null | undefined
  }

  export interface ListenerOptions {
    once?: boolean | undefined
    /** Its abort removes the listener. */
    signal?: SignalLike | null | undefined
  }

  /** The parts of a stream, to be read once. */
  export interface Stream<Part> extends AsyncIterableIterator<Part> {
    next(): Promise<IteratorResult<Part, undefined>>
    /** Leave the stream: it ends on the server too. */
    return(): Promise<IteratorResult<Part, undefined>>
    [Symbol.asyncIterator](): this
  }

  // Calls and pushes

  /** What an interface of calls may hold: functions. */
  export type CallMap<Calls> = { [Name in keyof Calls]: (...message: any[]) => any }

  /** The `type` of every message that may be sent. */
  export type CallName<Calls> = keyof Calls & string

  /** The `type` of every message that may be sent with `request()`: those of no stream. */
  export type RequestName<Calls> = {
    [Name in CallName<Calls>]: IsStream<Calls[Name]> extends true ? never : Name
  }[CallName<Calls>]

  /** The message of the call `Name`, or of any. */
  export type Message<Calls, Name extends CallName<Calls> = CallName<Calls>> = { type: Name } & (
    Name extends unknown ? { type: Name } & Payload<Calls[Name]> : never
  )

  /** What the call `Name` is answered with; `null` where the method returns nothing. */
  export type Reply<Calls, Name extends CallName<Calls> = CallName<Calls>> = Name extends unknown
    ? ReplyOf<Returned<Calls[Name]>>
    : never

  /** One part of the stream `Name`, which is the reply where the method does not stream. */
  export type Part<Calls, Name extends CallName<Calls> = CallName<Calls>> = Name extends unknown
    ? PartOf<Returned<Calls[Name]>>
    : never

  /** The key of every push. */
  export type PushKey<Pushes> = keyof Pushes & string

  /** The frame that a listener of `Key` hears: the payload with its key. */
  export type Push<Pushes, Key extends PushKey<Pushes> = PushKey<Pushes>> = IsAny<Pushes> extends true
    ? any
    : Key extends unknown
      ? { key: Key } & Pushes[Key]
      : never

  // What the rest is made of

  /** As much of an AbortSignal as the manager needs. */
  export interface SignalLike {
    readonly aborted: boolean
    addEventListener(type: "abort", listener: () => void): void
    removeEventListener(type: "abort", listener: () => void): void
  }

  /** The AbortSignal of the project's lib. */
  export type Signal = typeof globalThis extends { AbortSignal: { prototype: infer Known } }
    ? Known
    : SignalLike

  /** The CloseEvent of the project's lib. */
  export type Close = typeof globalThis extends { CloseEvent: { prototype: infer Known } }
    ? Known
    : { readonly code: number; readonly reason: string; readonly wasClean: boolean }

  type IsAny<Type> = 0 extends 1 & Type ? true : false

  type Payload<Method> = IsAny<Method> extends true
    ? { [field: string]: any }
    : Method extends (...given: infer Given) => any
      ? Given extends []
        ? unknown
        : NonNullable<Given[0]>
      : never

  type Returned<Method> = IsAny<Method> extends true
    ? any
    : Method extends (...given: any) => infer Result
      ? Awaited<Result>
      : never

  type IsStream<Method> = IsAny<Returned<Method>> extends true
    ? false
    : Returned<Method> extends AsyncIterable<any> | Iterator<any, any, any>
      ? true
      : false

  type ReplyOf<Result> = IsAny<Result> extends true ? any : [Result] extends [void] ? null : Result

  type PartOf<Result> = IsAny<Result> extends true
    ? any
    : Result extends AsyncIterable<infer One> | Iterator<infer One, any, any>
      ? One
      : ReplyOf<Result>
}

export = WebSocketManager
export as namespace WebSocketManager
