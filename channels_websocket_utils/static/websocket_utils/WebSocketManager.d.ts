/*
 * The types of WebSocketManager.js.
 *
 * You can describe calls and pushes with an interface each. A method of Calls looks like the method of
 * the consumer: its argument is the message without `type`, its result is the reply.
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
 * Without interfaces you can send every message, and replies have the type `any`. The only required lib
 * is ES2018. The types of the DOM or of Node are used if the project has them.
 */

/**
 * A WebSocket that reconnects. May be called without `new`.
 *
 * @typeParam Calls - The consumer's methods: see the top of this file.
 * @typeParam Pushes - The payload of each key that the server pushes.
 * @param path - Path or full URL of the socket. The token is added as its last part, unless it is offered
 *   as a subprotocol. Without a path, the constructor reads the page: the first script, or the body, with
 *   a `data-socket-path`, and its `data-token`, `data-token-url`, `data-token-source`, `data-token-path`
 *   and `data-identity`. Arguments override these attributes.
 * @param token - A string for the first dial, or a function that is called once for each dial.
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
   * @param path - Path or full URL of the socket. The token is added as its last part, unless it is
   *   offered as a subprotocol. Without a path, the constructor reads the page.
   * @param token - A string for the first dial, or a function that is called once for each dial.
   */
  constructor(path?: string | null, token?: WebSocketManager.Token, options?: WebSocketManager.Options)

  get state(): WebSocketManager.State

  /**
   * Send `message`. `replyHandler` is called with the reply, or with each part of a stream. An error goes
   * to `on("error")`.
   *
   * @returns `true` if the message was sent, `false` if it is queued.
   * @throws {@link WebSocketManager.WebSocketManagerError} `overflow` if the queue is full, `closed`
   *   if the manager is closed, `bad_message` if a text of the message is not valid Unicode.
   */
  sendJSON<Name extends WebSocketManager.CallName<Calls>>(
    message: WebSocketManager.Message<Calls, Name>,
    replyHandler?: ((reply: WebSocketManager.Part<Calls, Name>) => void) | null,
  ): boolean

  /**
   * Send `message` and return a promise of its reply. The promise is rejected with a
   * `WebSocketManagerError`.
   */
  request<Name extends WebSocketManager.RequestName<Calls>>(
    message: WebSocketManager.Message<Calls, Name>,
    options?: WebSocketManager.RequestOptions,
  ): Promise<WebSocketManager.Reply<Calls, Name>>

  /**
   * Send `message` at once, or queue it, and return an async iterator of its parts:
   * `for await (const part of manager.stream(message))`.
   *
   * Parts that came before an error are delivered before the error is thrown. Leaving the loop cancels
   * the stream on the server. A method that does not stream gives one part.
   */
  stream<Name extends WebSocketManager.CallName<Calls>>(
    message: WebSocketManager.Message<Calls, Name>,
    options?: WebSocketManager.StreamOptions,
  ): WebSocketManager.Stream<WebSocketManager.Part<Calls, Name>>

  /**
   * Call `handler` with every message that the server pushes under `key`. Returns a function that removes
   * the handler.
   */
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

  /**
   * Call `handler` on `"state"`, or on `"error"`: every error that no caller handles. Returns a function
   * that removes the handler.
   */
  on<Event extends keyof WebSocketManager.Events>(
    event: Event,
    handler: (detail: WebSocketManager.Events[Event]) => void,
    options?: WebSocketManager.ListenerOptions,
  ): () => void

  /**
   * Call `handler` with each message of a topic. The subscription resumes at its position after each loss
   * of the connection, also after `reconnect()`.
   */
  subscribe<Data extends object = any>(
    topic: string,
    handler: (data: Data, message: WebSocketManager.TopicMessage) => void,
    options?: WebSocketManager.SubscribeOptions,
  ): WebSocketManager.Subscription

  /** Close for good: reject calls as `closed`, and remove all timers and all listeners of the page. */
  close(): void

  /** Dial at once, from any state. */
  reconnect(): void
}

declare namespace WebSocketManager {
  export { WebSocketManager as default }

  /** The error of a failed call, and the detail of an `"error"` event. `code` says what happened. */
  export class WebSocketManagerError extends Error {
    constructor(code: ErrorCode, message?: string, more?: object)
    name: "WebSocketManagerError"
    code: ErrorCode
    /** The id of the error in the server's log, if the code is `internal`. */
    id?: string
    /** The name of the topic, if the error has ended a subscription. */
    topic?: string
    /** The errors of single fields, if the code is `invalid`: `loc` is a path of names and indexes. */
    fields?: { loc: (string | number)[]; message: string }[]
    cause?: unknown
  }

  /**
   * - `connecting`: the manager gets a token or opens a connection
   * - `open`: the connection is established
   * - `waiting`: the manager waits for the next dial
   * - `closed`: the manager has stopped, until `reconnect()` is called
   */
  export type State = "connecting" | "open" | "waiting" | "closed"

  /** Why the manager stopped: the reason of a `closed` event, and the code of its error. */
  export type StopReason =
    | "closed" // by close(); not an error
    | "ended" // 1000: the server has finished; not an error
    | "signed_out"
    | "token_refused"
    | "no_token" // the string token is used, and there is no tokenURL
    | "no_websocket" // the runtime has no WebSocket
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
    | "timeout" // of a dial, or of a connection without an answer
    | "token_failed"
    | "hidden" // a hidden page does not dial
    | "wake"
    | "reconnect"

  export interface StateEvent {
    state: State
    reason: Reason | null
    /** 1 for the first dial, and 1 more than the failures since a connection was last steady. */
    attempt: number
    /** Milliseconds until the next dial in `waiting`, `Infinity` while the page is hidden. */
    delay: number
  }

  /** Codes of errors that the manager detects. */
  export type ManagerErrorCode =
    | StopReason
    | "timeout"
    | "disconnected"
    | "overflow"
    | "aborted"
    | "stream" // request() of a method that streams: use stream()
    | "handler_failed" // a handler threw the `cause`
    | "unsupported" // the server has no topics

  /** Codes of errors that the server sends. */
  export type ServerErrorCode =
    | "bad_message"
    | "unknown_type"
    | "permission_denied"
    | "unauthenticated"
    | "invalid"
    | "not_found"
    | "too_large"
    | "rate_limited"
    | "unavailable"
    | "unknown_topic"
    | "too_many_topics"
    | "internal"

  /** Other servers may send other codes. */
  export type ErrorCode = ManagerErrorCode | ServerErrorCode | (string & {})

  export interface Events {
    state: StateEvent
    error: WebSocketManagerError
  }

  export type Token = string | TokenFunction | null | undefined

  /**
   * Called once before each dial.
   *
   * It can throw a {@link TokenError}. With any other error, the dial fails.
   */
  export type TokenFunction = (question: TokenQuestion) => TokenAnswer | PromiseLike<TokenAnswer>

  export interface TokenQuestion {
    /** 1 for the first dial, and 1 more than the failures since a connection was last steady. */
    attempt: number
    /** Aborted when the manager no longer needs the answer. */
    signal: Signal
  }

  /** A token, alone or with the identity of its user. */
  export type TokenAnswer = string | { token: string; identity?: string | null | undefined }

  /** The fields that the manager reads of an error that a token function throws. */
  export interface TokenError {
    /** 401 stops the manager as `signed_out`, 403 as `token_refused`. */
    status?: number
    /** Stops the manager as `token_refused`. */
    fatal?: boolean
    /** Seconds to add to the wait. */
    retryAfter?: number | string | null
  }

  export interface Options {
    /** The endpoint that issues tokens. */
    tokenURL?: string | null | undefined
    /**
     * `"subprotocol"` offers the token as a subprotocol, which keeps it out of the URL; the gate must
     * accept that source. By default `"path"`.
     */
    tokenSource?: "path" | "subprotocol" | undefined
    /**
     * The path that tokens are for, if a proxy changes the path of the socket: the path that the server
     * gets, or `""` for any path.
     */
    tokenPath?: string | null | undefined
    /**
     * The CSRF token for the `tokenURL`. By default the cookie. Without one, or if it is refused, the
     * `data-csrf-token` of the first script, or the body, that has one.
     */
    csrfToken?: string | (() => string | null | undefined) | null | undefined
    /** The header of the CSRF token, by default `"X-CSRFToken"`. */
    csrfHeader?: string | null | undefined
    /**
     * The identity of the user of all connections, as the server names it, if the token's answer has none.
     * With `null`, the first connection is not compared with the identity of the page.
     */
    identity?: string | null | undefined
    /** Continue after another user has signed in. */
    allowUserChange?: boolean | undefined
    /** The number of dials in a row after a loss. No limit by default. */
    maxRetries?: number | undefined
    /** Milliseconds to wait after `failures` failed dials; `undefined` for the default wait. */
    backoff?: ((failures: number) => number | undefined) | undefined
    /** `true` or `false` overrides the meaning of the close code. */
    shouldReconnect?: ((event: Close) => boolean | undefined) | undefined
    /**
     * An object with methods of `console`. Without it, only errors that no handler of `on("error")`
     * receives are written, to the console. With `false`, nothing is written.
     */
    logger?: Logger | false | undefined
  }

  export interface Logger {
    debug?(...data: any[]): void
    warn?(...data: any[]): void
    error?(...data: any[]): void
  }

  export interface RequestOptions {
    /** Milliseconds until the call fails as `timeout`; 10,000 by default. */
    timeout?: number | undefined
    /** If the signal is aborted, the call fails as `aborted`. */
    signal?: SignalLike | null | undefined
  }

  export interface StreamOptions {
    /**
     * Milliseconds for each part, until the stream fails as `timeout`: while the reader waits, or while
     * the reader takes nothing and the server may send no more. No limit by default.
     */
    timeout?: number | undefined
    /** If the signal is aborted, the stream fails as `aborted`. */
    signal?: SignalLike | null | undefined
  }

  export interface ListenerOptions {
    once?: boolean | undefined
    /** If the signal is aborted, the listener is removed. */
    signal?: SignalLike | null | undefined
  }

  export interface SubscribeOptions {
    /** If the signal is aborted, the subscription ends. */
    signal?: SignalLike | null | undefined
    /**
     * The handler gets the messages after this position. By default that of the page: the
     * `data-positions` of the first script, or the body, that has one. With `null`, the messages from
     * now on.
     */
    since?: Position | null | undefined
  }

  /** Where a page is in the history of a topic. */
  export interface Position {
    readonly epoch: string
    readonly offset: number
  }

  /** The second argument of a handler of a topic. */
  export interface TopicMessage {
    /** `undefined` if the topic has no history. */
    offset: number | undefined
    topic: string
  }

  /**
   * - `subscribing`: the subscription waits for the connection, or for the server's answer
   * - `live`: the handler gets each message
   * - `ended`: for good
   */
  export type SubscriptionState = "subscribing" | "live" | "ended"

  /** What `subscribe()` returns. */
  export interface Subscription {
    readonly topic: string
    readonly state: SubscriptionState
    /** Of the last message. `null` before the first answer, and for a topic without history. */
    readonly position: Position | null
    /**
     * Call `handler` on `"gap"`: messages are lost; or on `"state"`. Returns a function that removes the
     * handler.
     */
    on<Event extends keyof SubscriptionEvents>(
      event: Event,
      handler: (detail: SubscriptionEvents[Event]) => void,
      options?: ListenerOptions,
    ): () => void
    /** End the subscription. The handler is not called any more. */
    unsubscribe(): void
  }

  export interface SubscriptionEvents {
    gap: {
      reason: GapReason
      /** The present position: that of `subscription.position`. */
      position: Position | null
    }
    state: {
      state: SubscriptionState
      /** Why it is not live. An error code if the server has refused the topic. */
      reason: "disconnected" | "unsubscribed" | "aborted" | ErrorCode | null
    }
  }

  /** Why messages are lost. */
  export type GapReason =
    | "expired" // they are not kept any more
    | "epoch" // the history was cleared
    | "limit" // they are too many
    | "none_kept" // the topic has no history
    | "identity" // another user has signed in
    | (string & {})

  /** The parts of a stream. They can be read once. */
  export interface Stream<Part> extends AsyncIterableIterator<Part> {
    next(): Promise<IteratorResult<Part, undefined>>
    /** Leave the stream. It is cancelled on the server. */
    return(): Promise<IteratorResult<Part, undefined>>
    [Symbol.asyncIterator](): this
  }

  // Calls and pushes

  /** An interface of calls contains functions only. */
  export type CallMap<Calls> = { [Name in keyof Calls]: (...message: any[]) => any }

  /** The `type` of every message. */
  export type CallName<Calls> = keyof Calls & string

  /** The `type` of every message for `request()`: methods that do not stream. */
  export type RequestName<Calls> = {
    [Name in CallName<Calls>]: IsStream<Calls[Name]> extends true ? never : Name
  }[CallName<Calls>]

  /** The message of the call `Name`, or of any call. */
  export type Message<Calls, Name extends CallName<Calls> = CallName<Calls>> = { type: Name } & (
    Name extends unknown ? { type: Name } & Payload<Calls[Name]> : never
  )

  /** The reply to the call `Name`: `null` if the method returns nothing. */
  export type Reply<Calls, Name extends CallName<Calls> = CallName<Calls>> = Name extends unknown
    ? ReplyOf<Returned<Calls[Name]>>
    : never

  /** One part of the stream `Name`, or the reply if the method does not stream. */
  export type Part<Calls, Name extends CallName<Calls> = CallName<Calls>> = Name extends unknown
    ? PartOf<Returned<Calls[Name]>>
    : never

  /** The key of every push. */
  export type PushKey<Pushes> = keyof Pushes & string

  /** The message that a listener of `Key` receives: the payload with its key. */
  export type Push<Pushes, Key extends PushKey<Pushes> = PushKey<Pushes>> = IsAny<Pushes> extends true
    ? any
    : Key extends unknown
      ? { key: Key } & Pushes[Key]
      : never

  // Types that the others use

  /** The members of an AbortSignal that the manager uses. */
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
