// The plain application (see lib/plain.mjs) in Go with gorilla/websocket, its default check that Origin names the Host.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/websocket"
)

var (
	generation = os.Getenv("GENERATION")
	upgrader   = websocket.Upgrader{Subprotocols: []string{"b.v2"}}
)

func record(line any) {
	file, err := os.OpenFile(os.Getenv("RECORD"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		panic(err)
	}
	defer file.Close()
	text, _ := json.Marshal(line)
	file.Write(append(text, '\n'))
}

// on serves a path: the connection is dropped when handle returns, without a Close, as gorilla leaves it.
func on(path string, fields http.Header, handle func(*websocket.Conn, *http.Request)) {
	http.HandleFunc(path, func(answer http.ResponseWriter, request *http.Request) {
		conn, err := upgrader.Upgrade(answer, request, fields)
		if err != nil {
			return
		}
		defer conn.Close()
		handle(conn, request)
	})
}

func echo(conn *websocket.Conn, _ *http.Request) {
	for {
		kind, data, err := conn.ReadMessage()
		if err != nil {
			return
		}
		conn.WriteMessage(kind, data)
	}
}

func closing(conn *websocket.Conn, request *http.Request) {
	conn.WriteMessage(websocket.TextMessage, []byte("hello"))
	end := []byte{}
	if _, code, found := strings.Cut(request.URL.Path, "-"); found {
		number, _ := strconv.Atoi(code)
		end = websocket.FormatCloseMessage(number, "in a word: ä")
	}
	conn.WriteMessage(websocket.CloseMessage, end)
	conn.ReadMessage()
}

func leave(conn *websocket.Conn, _ *http.Request) {
	_, _, err := conn.ReadMessage()
	if end, ok := err.(*websocket.CloseError); ok {
		record(map[string]any{"left": []any{end.Code, end.Text}})
	} else {
		record(map[string]any{"left": []any{1006, ""}})
	}
}

func feed(conn *websocket.Conn, _ *http.Request) {
	lines, over := make(chan string), make(chan bool)
	defer close(over)
	go func() {
		for {
			select {
			case line := <-lines:
				conn.WriteMessage(websocket.TextMessage, []byte(line))
			case <-over:
				return
			}
		}
	}()
	say := func(line string) {
		select {
		case lines <- line:
		case <-over:
		}
	}
	for {
		var asked struct {
			Join  bool
			Order string
		}
		if conn.ReadJSON(&asked) != nil {
			return
		}
		if asked.Join {
			go func() {
				for tick := 0; ; tick++ {
					say(fmt.Sprintf(`{"tick":%d,"generation":%q}`, tick, generation))
					time.Sleep(50 * time.Millisecond)
				}
			}()
		}
		if asked.Order != "" {
			record(map[string]any{"order": asked.Order, "generation": generation})
			time.AfterFunc(500*time.Millisecond, func() { say(fmt.Sprintf(`{"receipt":%q}`, asked.Order)) })
		}
	}
}

func main() {
	for _, path := range []string{"/echo", "/sub", "/browser"} {
		on(path, nil, echo)
	}
	on("/cookie", http.Header{"Set-Cookie": {"sid=new; HttpOnly", "lb=7"}, "X-Request-Id": {"42"}}, echo)
	for _, path := range []string{"/close", "/close-1000", "/close-1001", "/close-1008", "/close-1011", "/close-4321"} {
		on(path, nil, closing)
	}
	on("/return", nil, func(conn *websocket.Conn, _ *http.Request) { conn.ReadMessage() })
	on("/leave", nil, leave)
	on("/feed", nil, feed)
	http.HandleFunc("/secret", func(answer http.ResponseWriter, _ *http.Request) {
		answer.Header().Set("WWW-Authenticate", `Bearer realm="api"`)
		answer.Header().Set("Set-Cookie", "try=2")
		answer.WriteHeader(http.StatusUnauthorized)
		io.WriteString(answer, `{"error":"token expired"}`)
	})
	http.HandleFunc("/page", func(answer http.ResponseWriter, request *http.Request) {
		body, _ := io.ReadAll(request.Body)
		fmt.Fprintf(answer, "%d bytes", len(body))
	})
	panic(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), nil))
}
