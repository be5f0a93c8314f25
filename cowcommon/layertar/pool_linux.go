package layertar

import (
	"context"
	"errors"
	"sync"

	"golang.org/x/sys/unix"
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

// ticket stands for a batch of jobs. 0 stands for a finished batch.
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
	fd      int         // of the file, once it is created; else -1
}

// batch is some jobs, and the buffer that holds the data of the small ones.
type batch struct {
	ticket ticket
	jobs   []job
	buf    []byte
}

// pool runs jobs in two stages, each in goroutines of its own: one creates the files of a batch, the other
// fills them. Jobs of one batch run in order, batches in any. The pool has one user, which is told of the
// first error, in the order of entries, by the methods that can wait.
type pool struct {
	ctx      context.Context // ends with the first error
	cancel   context.CancelCauseFunc
	stages   stages
	batches  chan *batch // to be created
	created  chan *batch // to be filled
	creators sync.WaitGroup
	fillers  sync.WaitGroup

	cur  *batch // being filled
	next ticket

	buffers sync.Pool // *batch
	chunks  sync.Pool // *[chunkBytes]byte

	mu      sync.Mutex
	idle    sync.Cond           // a batch is done
	pending map[ticket]struct{} // handed over and not done
	err     *EntryError
}

// stages are the two steps of each job, which take about half of the time each.
type stages struct {
	create func(*job) error                  // sets job.fd
	fill   func(context.Context, *job) error // closes job.fd
}

// errStopped is the result of a job that gave up because the context has ended.
var errStopped = errors.New("stopped")

// newPool starts n goroutines for each stage.
func newPool(ctx context.Context, n int, stages stages) *pool {
	p := &pool{
		stages:  stages,
		batches: make(chan *batch, n),
		created: make(chan *batch, n),
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
		p.creators.Go(p.create)
		p.fillers.Go(p.fill)
	}
	return p
}

// close ends the goroutines. Jobs that were not waited for may not be done.
func (p *pool) close() {
	p.cancel(context.Canceled)
	if p.cur != nil {
		p.finish(p.cur)
		p.cur = nil
	}
	close(p.batches)
	p.creators.Wait()
	close(p.created)
	p.fillers.Wait()
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
	j.fd = -1
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

// flush hands the current batch over.
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

func (p *pool) create() {
	for b := range p.batches {
		p.each(b, p.stages.create)
		p.created <- b
	}
}

func (p *pool) fill() {
	for b := range p.created {
		p.each(b, func(j *job) error { return p.stages.fill(p.ctx, j) })
		p.finish(b)
	}
}

// each runs one stage of the jobs of a batch, until the pool ends.
func (p *pool) each(b *batch, stage func(*job) error) {
	for i := range b.jobs {
		if p.ctx.Err() != nil {
			return
		}
		j := &b.jobs[i]
		if err := stage(j); err != nil && !errors.Is(err, errStopped) {
			p.fail(&EntryError{Index: j.index, Name: j.entry, Err: err})
		}
	}
}

// finish releases the resources of a batch.
func (p *pool) finish(b *batch) {
	for i := range b.jobs {
		j := &b.jobs[i]
		if j.fd >= 0 { // created and not filled
			_ = unix.Close(j.fd)
		}
		j.dir.release()
		*j = job{}
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
