package image

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
