// A classic script: no import, the global is the class.
interface BoardCalls {
  post_note(message: { text: string }): { id: number }
}

function openBoard(path: string, options: WebSocketManager.Options): WebSocketManager<BoardCalls> {
  return WebSocketManager<BoardCalls>(path, null, options)
}

class Board extends WebSocketManager<BoardCalls> {}
new Board("/ws/").request({ type: "post_note", text: "x" }).then(({ id }) => id.toFixed())
new WebSocketManager.WebSocketManagerError("closed").code

// @ts-expect-error: no such call.
openBoard("/ws/", {}).request({ type: "post_notes", text: "x" })
