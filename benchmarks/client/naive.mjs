// Clients as they are usually written, the controls of rolling.mjs. They reconnect with a new token, and
// then either forget the requests without an answer, or send them again.

class Naive {
  #pending = new Map()
  #notify = () => {}
  #count = 0

  constructor(url, token, { tokenURL, csrfToken }) {
    this.dial = async () => {
      const options = { method: "POST", headers: { "X-CSRFToken": csrfToken } }
      try {
        const { token } = await (await fetch(tokenURL, options)).json()
        const target = new URL(url)
        target.pathname += token
        this.#open(new WebSocket(target.href))
      } catch {
        setTimeout(this.dial, 200)
      }
    }
    setTimeout(this.dial)
  }

  on(event, notify) {
    this.#notify = notify
  }

  request(message) {
    const key = `k${++this.#count}`
    const frame = JSON.stringify({ ...message, reply_key: key })
    return new Promise((answer) => {
      this.#pending.set(key, { answer, frame })
      if (this.socket?.readyState === 1) this.socket.send(frame)
    })
  }

  #open(socket) {
    this.socket = socket
    socket.onopen = () => {
      this.#notify({ state: "open" })
      if (this.resends) for (const { frame } of this.#pending.values()) socket.send(frame)
    }
    socket.onmessage = ({ data }) => {
      const { key, data: value } = JSON.parse(data)
      this.#pending.get(key)?.answer(value)
      this.#pending.delete(key)
    }
    socket.onclose = () => {
      this.#notify({ state: "waiting" })
      setTimeout(this.dial, 200)
    }
  }
}

export const naive = {
  forgets: Naive,
  resends: class extends Naive {
    resends = true
  },
}
