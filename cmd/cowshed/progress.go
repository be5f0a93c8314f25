package main

import (
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/cowshed/cowshed/internal/image"
)

// bars shows long work on a terminal, and nothing elsewhere.
type bars struct {
	container *mpb.Progress // nil: nothing is shown

	mu   sync.Mutex
	open []ender
}

type ender interface{ End(note string) }

var _ image.Progress = (*bars)(nil)

// progress returns bars on standard error, which the caller waits for in the end.
func (s *store) progress(cmd *cobra.Command) *bars {
	return &bars{container: barsOn(cmd, s.quiet)}
}

// barsOn makes a place for bars on standard error. It is nil if nothing is to be shown.
func barsOn(cmd *cobra.Command, quiet bool) *mpb.Progress {
	if quiet || !isTerminal(cmd.ErrOrStderr()) {
		return nil
	}
	return mpb.New(mpb.WithOutput(cmd.ErrOrStderr()), mpb.WithWidth(48))
}

// Start implements image.Progress.
func (b *bars) Start(what string, total int64) image.Task {
	if b.container == nil {
		return nothing{}
	}
	t := &bar{}
	style := mpb.BarFillerBuilder(mpb.BarStyle())
	if total <= 0 {
		style = mpb.SpinnerStyle().PositionLeft()
	}
	t.shown = b.container.New(max(total, 0), style,
		mpb.PrependDecorators(decor.Name(what, decor.WCSyncSpaceR)),
		mpb.AppendDecorators(
			decor.CurrentKibiByte("% .1f", decor.WCSyncSpace),
			decor.AverageSpeed(decor.SizeB1024(0), " % .1f", decor.WCSyncSpace),
			decor.Name(" "), decor.Any(t.text),
		))
	b.add(t)
	return t
}

func (b *bars) add(t ender) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open = append(b.open, t)
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

// spinnerAfter is how long work takes before a spinner shows that it goes on.
const spinnerAfter = time.Second

// working calls do, whose work cannot be measured. On a terminal a spinner with the time shows it if it takes long.
func (s *store) working(cmd *cobra.Command, what string, do func() error) error {
	return workingOn(barsOn(cmd, s.quiet), spinnerAfter, what, do)
}

// workingOn is working with a place for bars, nil if nothing is to be shown.
func workingOn(p *mpb.Progress, after time.Duration, what string, do func() error) error {
	if p == nil {
		return do()
	}
	ended, shown := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(shown)
		select {
		case <-time.After(after):
		case <-ended:
			return
		}
		spinner := p.New(0, mpb.SpinnerStyle().PositionLeft(),
			mpb.PrependDecorators(decor.Name(what, decor.WCSyncSpaceR)), mpb.AppendDecorators(decor.Elapsed(decor.ET_STYLE_GO)))
		<-ended
		spinner.SetTotal(-1, true)
		spinner.Abort(true)
	}()
	err := do()
	close(ended)
	<-shown
	p.Wait()
	return err
}

// bar is one task.
type bar struct {
	shown *mpb.Bar

	mu   sync.Mutex
	note string
	over bool
}

// Add implements image.Task.
func (t *bar) Add(n int64) { t.shown.IncrInt64(n) }

// End implements image.Task.
func (t *bar) End(note string) {
	if t.end(note) {
		t.finish()
	}
}

// finish lets wait return, however much of the work was done. A bar whose total is known takes no other, and is aborted.
func (t *bar) finish() {
	t.shown.SetTotal(-1, true)
	t.shown.Abort(false)
}

// end notes how the task has ended, the first time.
func (t *bar) end(note string) (first bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	first = !t.over
	if first {
		t.over, t.note = true, note
	}
	return first
}

func (t *bar) text(decor.Statistics) string {
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
