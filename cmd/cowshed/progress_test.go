package main

import (
	"bytes"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/vbauerster/mpb/v8"
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
