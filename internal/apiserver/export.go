package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
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
	return r.compare(func(c *cowcommon.Comparison) error {
		format, err := formatOf(r.query["compress"], layertar.Plain)
		if err != nil {
			return err
		}
		out := stream{r.out, api.MediaTypeTar}
		compressor, err := layertar.Compress(out, format, 0)
		if err != nil {
			return err
		}
		return errors.Join(c.WriteTar(r.Context(), compressor, nil), compressor.Close())
	})
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
		what := v.Name
		if img, err := s.Images.Get(r.PathValue("layer")); err == nil && img.Top() == v.Name {
			what = img.Name
		}
		_, err = s.Images.Export(r.Context(), what, ref, image.ExportOptions{
			Format: format, Name: r.query["name"], Stdout: stream{r.out, api.MediaTypeTar},
		})
		return err
	})
}

func (r *request) sendLayer() error {
	parents, err := boolOf(r.query, "withParents")
	if err != nil {
		return err
	}
	ref, from := r.PathValue("layer"), r.query["from"]
	s, release, err := r.open(reads, ref, from)
	if err != nil {
		return err
	}
	defer release()
	v, err := r.find(s, reads, ref, s.Layer)
	if err != nil {
		return err
	}
	opts := live.SendOptions{WithParents: parents, Image: s.ImageOf()}
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
	if to.Transport != "" && to.Transport != image.Registry && !filepath.IsAbs(to.Path) {
		return refused(api.KindInvalidArgument, fmt.Sprintf("%q: the path must be absolute", body.To), "GET the path .../export for a stream")
	}
	return r.withLayer(reads, layer, func(s *layerstore.Store, v cowcommon.Volume) (err error) {
		p, still, err := s.Promotion(r.Context(), v, r.PathValue("layer"), body.Message, nil)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, still.Close()) }()
		lines := &progress{r: r}
		made, err := promote(r.Context(), s, p, to, body, image.ExportOptions{Format: format, Replace: body.Force, Progress: lines})
		switch {
		case err == nil:
			return lines.line(api.Progress{Image: made})
		case r.out.begun:
			return lines.line(api.Progress{Error: errorOf(err, r.PathValue("layer"))})
		}
		return err
	})
}

func promote(ctx context.Context, s *layerstore.Store, p image.Promotion, to image.Reference, body api.NewImage, opts image.ExportOptions) (*api.Image, error) {
	if to.Transport != "" {
		e, err := s.Images.ExportPromotion(ctx, p, to, opts)
		if err != nil {
			return nil, err
		}
		return &api.Image{Name: e.Name, ID: e.Image.String(), Manifest: e.Manifest.String(), DiffIDs: texts(e.Layers)}, nil
	}
	imported, err := s.Images.Promote(ctx, p, image.ImportOptions{Name: body.To, Replace: body.Force, Progress: opts.Progress})
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
