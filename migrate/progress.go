package migrate

// Progress is told of the work of a Migration. Its methods are called by one goroutine at a time.
type Progress interface {
	// Start begins work on a number of things, such as "layers".
	Start(what string, total int) Task
}

// Task is work on a number of things.
type Task interface {
	// Next says that work on the next thing begins.
	Next(name string)
	// End says that no more things follow. note says in a word or two how it ended.
	End(note string)
}

type noProgress struct{}

func (noProgress) Start(string, int) Task { return noProgress{} }
func (noProgress) Next(string)            {}
func (noProgress) End(string)             {}
