// Snapload is a client of a daemon's snapshotter that stays busy, for tests of restarts.
//
// Usage:
//
//	snapload [-socket FILE] [-for DURATION] [-clients N] [-keep NAME] [-has NAME]
//
// Each client prepares, measures, commits and removes snapshots, one after the other, for the duration. A request that
// fails is an error: a socket that systemd holds refuses nobody while the daemon is restarted. With -keep it then makes
// a committed snapshot of that name, which stays. With -has it first asks for such a snapshot.
//
// It prints how many snapshots there were and how long the slowest request took. Exit codes: 0 every request was
// answered; 1 one was not; 2 wrong usage.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"sync"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/cowshed/cowshed/internal/containerdapi"
)

// patience is how long a request may take, and a new connection, while the daemon is restarted on a slow machine.
const patience = 2 * time.Minute

func main() {
	socket := flag.String("socket", "/run/cowshed/cowshed.sock", "the daemon's `socket`")
	duration := flag.Duration("for", 0, "how long the clients work")
	clients := flag.Int("clients", 4, "how many work at once")
	keep := flag.String("keep", "", "`name` of a snapshot that is made and stays")
	has := flag.String("has", "", "`name` of a snapshot that must be there")
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(context.Background(), *socket, *duration, *clients, *keep, *has); err != nil {
		fmt.Fprintln(os.Stderr, "snapload:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, socket string, duration time.Duration, clients int, keep, has string) error {
	connection, err := containerdapi.Dial(socket,
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: patience}))
	if err != nil {
		return err
	}
	defer connection.Close()
	l := &load{sn: proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(connection), "cowshed")}

	if has != "" {
		if err := l.request(ctx, "stat", func(ctx context.Context) error { return l.check(ctx, has) }); err != nil {
			return err
		}
	}
	end := time.Now().Add(duration)
	var group errgroup.Group
	for client := range clients {
		group.Go(func() error {
			for i := 0; time.Now().Before(end); i++ {
				if err := l.snapshot(ctx, fmt.Sprintf("snapload-%d-%d-%d", os.Getpid(), client, i)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if keep != "" {
		if err := l.make(ctx, keep); err != nil {
			return err
		}
	}
	fmt.Printf("%d snapshots, slowest request %s\n", l.done, l.slowest.Round(time.Millisecond))
	return nil
}

type load struct {
	sn snapshots.Snapshotter

	mu      sync.Mutex
	done    int
	slowest time.Duration
}

// check returns an error unless there is a committed snapshot of that name.
func (l *load) check(ctx context.Context, name string) error {
	info, err := l.sn.Stat(ctx, name)
	if err == nil && info.Kind != snapshots.KindCommitted {
		err = fmt.Errorf("%s is %s, not committed", name, info.Kind)
	}
	return err
}

// snapshot makes a snapshot and removes it.
func (l *load) snapshot(ctx context.Context, name string) error {
	if err := l.make(ctx, name); err != nil {
		return err
	}
	if err := l.request(ctx, "remove "+name, func(ctx context.Context) error { return l.sn.Remove(ctx, name) }); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.done++
	return nil
}

// make makes a committed snapshot.
func (l *load) make(ctx context.Context, name string) error {
	key := name + "-active"
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"prepare " + key, func(ctx context.Context) error { _, err := l.sn.Prepare(ctx, key, ""); return err }},
		{"usage of " + key, func(ctx context.Context) error { _, err := l.sn.Usage(ctx, key); return err }},
		{"commit " + name, func(ctx context.Context) error { return l.sn.Commit(ctx, name, key) }},
		{"stat " + name, func(ctx context.Context) error { return l.check(ctx, name) }},
	} {
		if err := l.request(ctx, step.what, step.do); err != nil {
			return err
		}
	}
	return nil
}

// request makes a request and notes how long it takes.
func (l *load) request(ctx context.Context, what string, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	begun := time.Now()
	err := do(ctx)
	took := time.Since(begun)
	if err != nil {
		return fmt.Errorf("%s, after %s: %w", what, took.Round(time.Millisecond), err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.slowest = max(l.slowest, took)
	return nil
}
