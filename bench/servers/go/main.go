// The comparison's application for Go's fasthttp.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"strconv"
	"time"

	"github.com/fasthttp/router"
	"github.com/valyala/fasthttp"
)

type healthDocument struct {
	Status    string `json:"status"`
	Service   string `json:"service"`
	Timestamp int64  `json:"timestamp"`
}

type itemDocument struct {
	Route int `json:"route"`
	ID    int `json:"id"`
}

func answer(ctx *fasthttp.RequestCtx, document any) {
	body, err := json.Marshal(document)
	if err != nil {
		ctx.Error(err.Error(), fasthttp.StatusInternalServerError)
		return
	}
	ctx.SetContentType("application/json")
	ctx.SetBody(body)
}

func main() {
	port := flag.Int("port", 0, "where to listen")
	flag.Parse()
	routes := router.New()
	routes.GET("/health", func(ctx *fasthttp.RequestCtx) {
		answer(ctx, healthDocument{"healthy", "fluxor-fast", time.Now().Unix()})
	})
	routes.GET("/plaintext", func(ctx *fasthttp.RequestCtx) {
		ctx.SetContentType("text/plain")
		ctx.SetBodyString("Hello, World!")
	})
	routes.POST("/echo", func(ctx *fasthttp.RequestCtx) {
		var document map[string]any
		if err := json.Unmarshal(ctx.PostBody(), &document); err != nil {
			ctx.Error(err.Error(), fasthttp.StatusBadRequest)
			return
		}
		answer(ctx, document)
	})
	for n := 0; n < 300; n++ {
		routes.GET(fmt.Sprintf("/r%d/items/{number}", n), func(ctx *fasthttp.RequestCtx) {
			number, err := strconv.Atoi(ctx.UserValue("number").(string))
			if err != nil {
				ctx.NotFound()
				return
			}
			answer(ctx, itemDocument{n, number})
		})
	}
	server := fasthttp.Server{Handler: routes.Handler}
	if err := server.ListenAndServe(fmt.Sprintf("127.0.0.1:%d", *port)); err != nil {
		panic(err)
	}
}
