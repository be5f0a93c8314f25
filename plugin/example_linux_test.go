package plugin_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/plugin"
)

// A plugin whose driver is opened where the engine says.
func Example() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	dir, err := os.MkdirTemp("", "plugin")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "cowshed.sock") // an engine looks where plugin.SocketPath says
	listener, err := plugin.Listen(ctx, socket)
	if err != nil {
		log.Fatal(err)
	}
	adapter := plugin.NewAdapter(func(request plugin.InitRequest) (graphdriver.Driver, error) {
		return graphdriver.New("btrfs", graphdriver.Options{Root: request.Home, DriverOptions: request.Options, IDMap: request.IDMap()})
	}, plugin.AdapterOptions{})
	served := make(chan error)
	go func() { served <- plugin.NewHandler(adapter).ServeContext(ctx, listener) }()

	fmt.Println(activate(socket))
	stop()
	if err := <-served; err != nil {
		log.Fatal(err)
	}
	if err := adapter.Close(); err != nil {
		log.Fatal(err)
	}
	// Output: {"Implements": ["GraphDriver"]}
}

// activate sends the first request of an engine.
func activate(socket string) string {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}
	answer, err := client.Post("http://plugin/Plugin.Activate", "application/json", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		log.Fatal(err)
	}
	return string(text)
}
