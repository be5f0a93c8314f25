package main

import (
	"bytes"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/vbauerster/mpb/v8"

	"github.com/cowshed/cowshed/internal/testfs"
)

// TestBars: a task ends once. The program waits neither for tasks that end early nor for tasks that nobody ends.
func TestBars(t *testing.T) {
	var out bytes.Buffer
	p := &things{bars{container: mpb.New(mpb.WithOutput(&out), mpb.WithWidth(48), mpb.WithAutoRefresh(), mpb.WithRefreshRate(50*time.Microsecond))}}
	layers := p.Start("layers", 1000)
	for i := range 1000 { // while the bar is drawn, which reads the name
		layers.Next(strconv.Itoa(i))
	}
	layers.End("done")
	layers.End("again")
	p.Start("images", 3).Next("debian")
	copied := p.bars.Start("copied", 1024)
	copied.Add(512)
	copied.End("failed")
	p.wait()
	for _, text := range []string{"layers", "1000/1000", "done", "images", "0/3", "copied", "failed"} {
		assert.Contains(t, out.String(), text)
	}
	assert.NotContains(t, out.String(), "again")

	hidden := &things{}
	task := hidden.Start("layers", 1)
	task.Next("one")
	task.End("done")
	hidden.wait()
}

// TestWorking: work that takes long is shown, and other work is not.
func TestWorking(t *testing.T) {
	for _, long := range []bool{true, false} {
		var out syncBuffer
		p := mpb.New(mpb.WithOutput(&out), mpb.WithWidth(48), mpb.WithAutoRefresh(), mpb.WithRefreshRate(50*time.Microsecond))
		after := time.Hour
		if long {
			after = 0
		}
		err := workingOn(p, after, "adopt", func() error {
			if long {
				assert.Eventually(t, func() bool { return strings.Contains(out.String(), "adopt") }, testfs.Patience, time.Millisecond)
			}
			return errReported
		})
		assert.ErrorIs(t, err, errReported)
		assert.Equal(t, long, strings.Contains(out.String(), "adopt"))
	}
	assert.NoError(t, workingOn(nil, 0, "adopt", func() error { return nil }))
}

// syncBuffer is a buffer that somebody reads while others write.
type syncBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}
