package image

import "io"

// Progress is told of long work. Its methods are called from one goroutine at a time.
type Progress interface {
	// Start begins a task of total bytes, negative if that is not known.
	Start(what string, total int64) Task
}

// Task is one piece of work that takes time.
type Task interface {
	// Add says that n more bytes are done.
	Add(n int64)
	// End ends the task; note says how, in a word or two.
	End(note string)
}

type noProgress struct{}

func (noProgress) Start(string, int64) Task { return noProgress{} }
func (noProgress) Add(int64)                {}
func (noProgress) End(string)               {}

func orNoProgress(p Progress) Progress {
	if p == nil {
		return noProgress{}
	}
	return p
}

// taskReader counts the bytes read as progress.
type taskReader struct {
	r    io.Reader
	task Task
}

// Read implements io.Reader.
func (t *taskReader) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	t.task.Add(int64(n))
	return n, err
}
