package layertar

import (
	"context"
	"errors"
	"sync"
)

const (
	// batchJobs and batchBytes bound a batch: few enough for several workers to share a directory's files,
	// many enough for handing over to cost little against creating.
	batchJobs  = 16
	batchBytes = 256 << 10
	// smallFile is the size up to which files share the buffer of a batch.
	smallFile = 64 << 10
	// chunkBytes is how much of a larger file is written at once.
	chunkBytes = 1 << 20
	// chunksAhead is how many chunks of a file may wait for its writer.
	chunksAhead = 2
)

// ticket stands for a batch of jobs. 0 is one that is done.
type ticket uint64

// job is a file to be made.
type job struct {
	dir     *dirFD
	name    string
	replace bool // a file of this name is there and goes first
	dropACL bool // the directory hands down an ACL
	meta    meta
	size    int64
	data    []byte      // all of it, or
	more    chan []byte // chunks of it, closed at the end
	index   int64       // of the entry
	entry   string      // its name
}

// batch is some jobs, and the buffer that holds the data of the small ones.
type batch struct {
	ticket ticket
	jobs   []job
	buf    []byte
}

// pool runs jobs in several goroutines. Jobs of one batch run in order, batches in any. It has one user,
// which is told of the first error, in the order of entries, by the methods that can wait.
type pool struct {
	ctx     context.Context // ends with the first error
	cancel  context.CancelCauseFunc
	run     func(context.Context, *job) error
	batches chan *batch
	workers sync.WaitGroup

	cur  *batch // being filled
	next ticket

	buffers sync.Pool // *batch
	chunks  sync.Pool // *[chunkBytes]byte

	mu      sync.Mutex
	idle    sync.Cond           // a batch is done
	pending map[ticket]struct{} // handed over and not done
	err     *EntryError
}

// errStopped is what a job returns that gave up because the context has ended.
var errStopped = errors.New("stopped")

// newPool starts n workers.
func newPool(ctx context.Context, n int, run func(context.Context, *job) error) *pool {
	p := &pool{
		run:     run,
		batches: make(chan *batch, n),
		pending: make(map[ticket]struct{}),
		next:    1,
	}
	p.ctx, p.cancel = context.WithCancelCause(ctx)
	p.idle.L = &p.mu
	p.buffers.New = func() any {
		return &batch{jobs: make([]job, 0, batchJobs), buf: make([]byte, 0, batchBytes)}
	}
	p.chunks.New = func() any { return new([chunkBytes]byte) }
	for range n {
		p.workers.Go(p.work)
	}
	return p
}

// close ends the workers. Jobs that were not waited for may not be done.
func (p *pool) close() {
	p.cancel(context.Canceled)
	if p.cur != nil {
		p.finish(p.cur)
		p.cur = nil
	}
	close(p.batches)
	p.workers.Wait()
}

// failure is the error that ended the pool, or nil.
func (p *pool) failure() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return p.err
	}
	return context.Cause(p.ctx)
}

func (p *pool) fail(err *EntryError) {
	p.mu.Lock()
	if p.err == nil || err.Index < p.err.Index {
		p.err = err
	}
	p.mu.Unlock()
	p.cancel(err)
}

// room returns space for the data of a small file in the current batch.
func (p *pool) room(size int) ([]byte, error) {
	if p.cur != nil && (len(p.cur.jobs) == batchJobs || len(p.cur.buf)+size > cap(p.cur.buf)) {
		if err := p.flush(); err != nil {
			return nil, err
		}
	}
	b := p.current()
	n := len(b.buf)
	b.buf = b.buf[:n+size]
	return b.buf[n:][:size:size], nil
}

// add puts a job into the current batch. It never waits.
func (p *pool) add(j job) ticket {
	b := p.current()
	b.jobs = append(b.jobs, j)
	return b.ticket
}

func (p *pool) current() *batch {
	if p.cur == nil {
		p.cur, _ = p.buffers.Get().(*batch)
		p.cur.ticket = p.next
		p.next++
	}
	return p.cur
}

// flush hands the current batch over to the workers.
func (p *pool) flush() error {
	b := p.cur
	if b == nil {
		return nil
	}
	p.cur = nil
	p.mu.Lock()
	p.pending[b.ticket] = struct{}{}
	p.mu.Unlock()
	select {
	case p.batches <- b:
		return nil
	case <-p.ctx.Done():
		p.finish(b)
		return p.failure()
	}
}

// wait returns when the batch of a ticket is done.
func (p *pool) wait(t ticket) error {
	if t == 0 {
		return nil
	}
	if p.cur != nil && p.cur.ticket == t {
		if err := p.flush(); err != nil {
			return err
		}
	}
	p.mu.Lock()
	for p.waiting(t) {
		p.idle.Wait()
	}
	p.mu.Unlock()
	return p.failure()
}

func (p *pool) waiting(t ticket) bool {
	_, ok := p.pending[t]
	return ok
}

// barrier returns when all jobs are done.
func (p *pool) barrier() error {
	if err := p.flush(); err != nil {
		return err
	}
	p.mu.Lock()
	for len(p.pending) > 0 {
		p.idle.Wait()
	}
	p.mu.Unlock()
	return p.failure()
}

func (p *pool) work() {
	for b := range p.batches {
		for i := range b.jobs {
			j := &b.jobs[i]
			if p.ctx.Err() != nil {
				break
			}
			if err := p.run(p.ctx, j); err != nil && !errors.Is(err, errStopped) {
				p.fail(&EntryError{Index: j.index, Name: j.entry, Err: err})
			}
		}
		p.finish(b)
	}
}

// finish lets go of what a batch holds.
func (p *pool) finish(b *batch) {
	for i := range b.jobs {
		b.jobs[i].dir.release()
		b.jobs[i] = job{}
	}
	p.mu.Lock()
	delete(p.pending, b.ticket)
	p.mu.Unlock()
	p.idle.Broadcast()
	b.jobs, b.buf = b.jobs[:0], b.buf[:0]
	p.buffers.Put(b)
}

// chunk returns a buffer for a piece of a larger file.
func (p *pool) chunk() []byte {
	c, _ := p.chunks.Get().(*[chunkBytes]byte)
	return c[:]
}

// putChunk takes a buffer back.
func (p *pool) putChunk(b []byte) {
	p.chunks.Put((*[chunkBytes]byte)(b[:chunkBytes]))
}
