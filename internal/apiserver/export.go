package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cowshed/cowshed/api"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/internal/image"
	"github.com/cowshed/cowshed/internal/layerstore"
	"github.com/cowshed/cowshed/live"
)

func (r *request) diffLayer() error {
	if err := r.checkStream(); err != nil {
		return err
	}
	return r.compare(func(c *cowcommon.Comparison) error {
		format, err := formatOf(r.query["compress"], layertar.Plain)
		if err != nil {
			return err
		}
		return compress(stream{r.out, api.MediaTypeTar}, format, func(w io.Writer) error { return c.WriteTar(r.Context(), w, nil) })
	})
}

// checkStream refuses a stream to a client of HTTP/1.0, where the end of the connection is that of each answer. Such a client could
// not tell a stream that was cut off.
func (r *request) checkStream() error {
	if !r.ProtoAtLeast(1, 1) {
		return refused(api.KindNotImplemented, r.Proto+" has no streams", "send the request with HTTP/1.1")
	}
	return nil
}

// compress compresses the output of write into w. If write fails, w gets nothing more, and so no end that would make it complete.
func compress(w io.Writer, format layertar.Format, write func(w io.Writer) error) error {
	cut := &cutWriter{w: w}
	compressor, err := layertar.Compress(cut, format, 0)
	if err != nil {
		return err
	}
	err = write(compressor)
	if err != nil {
		cut.cut.Store(true)
	}
	return errors.Join(err, compressor.Close())
}

// cutWriter writes to w until it is cut. A compressor writes from other goroutines.
type cutWriter struct {
	w   io.Writer
	cut atomic.Bool
}

// errCut is the error of a write to a cutWriter that is cut.
var errCut = errors.New("the stream has failed")

// Write implements io.Writer.
func (c *cutWriter) Write(data []byte) (int, error) {
	if c.cut.Load() {
		return 0, errCut
	}
	return c.w.Write(data)
}

// formatOf reads the name of a compression.
func formatOf(name string, or layertar.Format) (layertar.Format, error) {
	if name == "" {
		return or, nil
	}
	if !slices.Contains([]string{"none", "gzip", "zstd"}, name) {
		return or, refused(api.KindInvalidArgument, fmt.Sprintf("compress %.64q: say none, gzip or zstd", name), "")
	}
	return layertar.ParseFormat(name)
}

func (r *request) exportLayer() (err error) {
	if err := r.checkStream(); err != nil {
		return err
	}
	if err := checkLength("name", r.query["name"], 0, maxImage); err != nil {
		return err
	}
	ref, format := image.Reference{Transport: image.DockerArchive, Path: image.Stdio}, layertar.Plain
	switch r.query["format"] {
	case "", string(image.DockerArchive):
	case string(image.OCIArchive):
		ref.Transport, format = image.OCIArchive, layertar.Gzip
	default:
		return refused(api.KindInvalidArgument, fmt.Sprintf("format %.64q: say docker-archive or oci-archive", r.query["format"]), "")
	}
	if format, err = formatOf(r.query["compress"], format); err != nil {
		return err
	}
	return r.withLayer(reads, layer, func(s *layerstore.Store, v cowcommon.Volume) error {
		leave, err := r.enterGate(r.server.exports, "exports under way")
		if err != nil {
			return err
		}
		defer leave()
		opts := image.ExportOptions{Format: format, Name: r.query["name"], Stdout: stream{r.out, api.MediaTypeTar}}
		if !r.caller.admin { // the layers below may not be the caller's
			_, err = s.Images.ExportContent(r.Context(), v, ref, opts)
			return err
		}
		img, err := s.Images.Get(r.PathValue("layer"))
		if err != nil {
			img = nil
		}
		_, err = s.Images.ExportLayer(r.Context(), v.Name, img, ref, opts)
		return err
	})
}

func (r *request) sendLayer() error {
	if err := r.checkStream(); err != nil {
		return err
	}
	parents, err := boolOf(r.query, "withParents")
	if err != nil {
		return err
	}
	from := r.query["from"]
	return r.withLayer(reads, layer, func(s *layerstore.Store, v cowcommon.Volume) error {
		opts := live.SendOptions{WithParents: parents}
		if r.caller.admin {
			opts.Image = s.ImageOf() // its config tells of the layers below
		} else {
			opts.Allow = func(parent cowcommon.Volume) error { return r.mayUse(s, reads, s.Shown(parent.Name), parent) }
		}
		if from != "" {
			base, err := r.find(s, reads, from, s.Layer)
			if err != nil {
				return fmt.Errorf("from: %w", err)
			}
			opts.From = base.Name
		}
		leave, err := r.enterWalk()
		if err != nil {
			return err
		}
		defer leave()
		_, err = s.Live.Send(r.Context(), stream{r.out, api.MediaTypeStream}, v.Name, opts)
		return err
	}, from)
}

func (r *request) promoteLayer() error {
	var body api.NewImage
	if err := r.body(&body); err != nil {
		return err
	}
	if !r.caller.admin {
		return refused(api.KindPermissionDenied, "only an administrator makes images", "GET the path .../export, and import that")
	}
	format, err := formatOf(body.Compress, layertar.Gzip)
	if err != nil {
		return err
	}
	to, err := layerstore.PromotionTarget(body.To)
	if err != nil {
		return err
	}
	if !slices.Contains([]image.Transport{"", image.Registry, image.Containerd}, to.Transport) && !filepath.IsAbs(to.Path) {
		return refused(api.KindInvalidArgument, fmt.Sprintf("%q: the path must be absolute", body.To), "GET the path .../export for a stream")
	}
	return r.withLayer(reads, layer, func(s *layerstore.Store, v cowcommon.Volume) (err error) {
		into := s
		if to.Transport == "" && s.Containers != nil { // among their volumes there are no images
			store, release, err := r.server.opts.Stores.Open(r.Context())
			if err != nil {
				return err
			}
			defer release()
			into = store
		}
		p, err := s.Promotion(r.Context(), v, r.PathValue("layer"), body.Message, nil)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, p.Close()) }()
		lines := &progress{r: r}
		made, err := promote(r.Context(), s, into, p, to, body, image.ExportOptions{Format: format, Replace: body.Force, Progress: lines})
		switch {
		case err == nil:
			return lines.line(api.Progress{Image: made})
		case r.out.begun:
			return lines.line(api.Progress{Error: errorOf(err, r.PathValue("layer"))})
		}
		return err
	})
}

// promote writes the image to a place, or makes it in the store into.
func promote(ctx context.Context, s, into *layerstore.Store, p *layerstore.Promotion, to image.Reference, body api.NewImage, opts image.ExportOptions) (*api.Image, error) {
	if to.Transport != "" {
		e, err := s.ExportPromotion(ctx, p, to, opts)
		if err != nil {
			return nil, err
		}
		return &api.Image{Name: e.Name, ID: e.Image.String(), Manifest: e.Manifest.String(), DiffIDs: texts(e.Layers)}, nil
	}
	imported, err := s.Promote(ctx, into, p, image.ImportOptions{Name: body.To, Replace: body.Force, Progress: opts.Progress})
	if err != nil {
		return nil, err
	}
	return &api.Image{Name: imported.Image.Name, ID: imported.Image.ID().String(), DiffIDs: texts(imported.Image.DiffIDs())}, nil
}

func texts(digests []digest.Digest) []string {
	list := make([]string, 0, len(digests))
	for _, d := range digests {
		list = append(list, d.String())
	}
	return list
}

// progress writes the progress of a request as JSON lines. Its methods are called from one goroutine at a time.
type progress struct {
	r   *request
	err error
}

// line writes a line, unless an earlier one has failed.
func (p *progress) line(line api.Progress) error {
	if p.err != nil {
		return p.err
	}
	data, err := json.Marshal(line)
	if err == nil {
		_, err = stream{p.r.out, api.MediaTypeProgress}.Write(append(data, '\n'))
	}
	if err == nil {
		err = p.r.out.control.Flush()
	}
	if errors.Is(err, http.ErrNotSupported) {
		err = nil
	}
	p.err = err
	return err
}

// Start implements image.Progress.
func (p *progress) Start(what string, total int64) image.Task {
	t := &task{p: p, now: api.Progress{Task: what, Total: max(total, 0)}, shown: time.Now()}
	_ = p.line(t.now) // the last line says if one has failed
	return t
}

// task is a task whose progress is written about once a second.
type task struct {
	p     *progress
	now   api.Progress
	shown time.Time
}

// Add implements image.Task.
func (t *task) Add(n int64) {
	t.now.Bytes += n
	if time.Since(t.shown) >= time.Second {
		t.shown = time.Now()
		_ = t.p.line(t.now)
	}
}

// End implements image.Task.
func (t *task) End(note string) {
	t.now.End = note
	if note == "" {
		t.now.End = "done"
	}
	_ = t.p.line(t.now)
}
