package main

import (
	"sync"

	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/cowshed/cowshed/internal/image"
)

// bars shows long work on a terminal, and nothing elsewhere.
type bars struct {
	container *mpb.Progress // nil: nothing is shown

	mu   sync.Mutex
	open []*bar
}

var _ image.Progress = (*bars)(nil)

// progress returns bars on standard error, which the caller waits for in the end.
func (s *store) progress(cmd *cobra.Command) *bars {
	if s.quiet || !isTerminal(cmd.ErrOrStderr()) {
		return &bars{}
	}
	return &bars{container: mpb.New(mpb.WithOutput(cmd.ErrOrStderr()), mpb.WithWidth(48))}
}

// Start implements image.Progress.
func (b *bars) Start(what string, total int64) image.Task {
	if b.container == nil {
		return nothing{}
	}
	t := &bar{}
	done := decor.Any(func(decor.Statistics) string { return t.ended() })
	style := mpb.BarFillerBuilder(mpb.BarStyle())
	if total <= 0 {
		style = mpb.SpinnerStyle().PositionLeft()
	}
	t.bar = b.container.New(max(total, 0), style,
		mpb.PrependDecorators(decor.Name(what, decor.WCSyncSpaceR)),
		mpb.AppendDecorators(
			decor.CurrentKibiByte("% .1f", decor.WCSyncSpace),
			decor.AverageSpeed(decor.SizeB1024(0), " % .1f", decor.WCSyncSpace),
			decor.Name(" "), done,
		))
	b.mu.Lock()
	b.open = append(b.open, t)
	b.mu.Unlock()
	return t
}

// wait draws the bars for the last time.
func (b *bars) wait() {
	if b.container == nil {
		return
	}
	b.mu.Lock()
	for _, t := range b.open {
		t.End("")
	}
	b.mu.Unlock()
	b.container.Wait()
}

// bar is one task.
type bar struct {
	bar *mpb.Bar

	mu   sync.Mutex
	note string
	over bool
}

// Add implements image.Task.
func (t *bar) Add(n int64) { t.bar.IncrInt64(n) }

// End implements image.Task.
func (t *bar) End(note string) {
	t.mu.Lock()
	over := t.over
	if !over {
		t.over, t.note = true, note
	}
	t.mu.Unlock()
	if !over {
		t.bar.SetTotal(-1, true) // all work is done
	}
}

func (t *bar) ended() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.note
}

type nothing struct{}

func (nothing) Add(int64)  {}
func (nothing) End(string) {}

// outcome is how a task ended.
func outcome(err error) string {
	if err != nil {
		return "failed"
	}
	return "done"
}
