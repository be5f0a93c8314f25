package zfs

import "sync"

// pending counts the activities in the background, and keeps the files of a Backend open meanwhile. The zero value counts
// none.
type pending struct {
	mu    sync.Mutex
	count int
	last  func() // called at the end of the last; nil before close
}

// begin counts one more, until the caller calls done.
func (p *pending) begin() (done func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count++
	return sync.OnceFunc(p.end)
}

func (p *pending) end() {
	p.mu.Lock()
	p.count--
	var last func()
	if p.count == 0 {
		last, p.last = p.last, nil
	}
	p.mu.Unlock()
	if last != nil {
		last()
	}
}

// close calls leave and returns its error if there are none. Otherwise close returns at once. Then leave is called when the
// last one has ended, and failed if that fails.
func (p *pending) close(leave func() error, failed func(error)) error {
	p.mu.Lock()
	if p.count > 0 {
		p.last = func() {
			if err := leave(); err != nil {
				failed(err)
			}
		}
		p.mu.Unlock()
		return nil
	}
	p.mu.Unlock()
	return leave()
}
