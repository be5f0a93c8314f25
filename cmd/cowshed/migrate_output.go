package main

import (
	"fmt"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/cowshed/cowshed/internal/layerstore"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/quota"
)

// plannedInfo is a plan as migrate plan --json prints it.
type plannedInfo struct {
	Program    string             `json:"program"`
	Driver     string             `json:"driver"`
	Source     string             `json:"source"`
	Target     string             `json:"target"`
	Layers     []plannedLayer     `json:"layers"`
	Images     []plannedImage     `json:"images"`
	Containers []plannedContainer `json:"containers"`
	Bytes      int64              `json:"bytes"`   // that are copied
	Blobs      int64              `json:"blobs"`   // bytes at most, of images' blobs that are written
	Seconds    float64            `json:"seconds"` // estimate
	Problems   []problemInfo      `json:"problems"`
	Refusals   []string           `json:"refusals"`
}

type plannedLayer struct {
	ID      string        `json:"id"`
	Parent  string        `json:"parent,omitempty"`
	Kind    migrate.Kind  `json:"kind"`
	ChainID digest.Digest `json:"chainID,omitempty"`
	How     migrate.How   `json:"how,omitempty"`
	Bytes   int64         `json:"bytes"`
	Blob    int64         `json:"blob"`
	There   bool          `json:"there"`
}

type plannedImage struct {
	ID    digest.Digest `json:"id"`
	Names []string      `json:"names"`
}

type plannedContainer struct {
	ID    string        `json:"id"`
	Name  string        `json:"name"`
	Image digest.Digest `json:"image,omitempty"`
}

type problemInfo struct {
	What  string `json:"what"`
	ID    string `json:"id"`
	Name  string `json:"name,omitempty"`
	Error string `json:"error"`
}

func describePlan(p *migrate.Plan) plannedInfo {
	info := plannedInfo{
		Program: p.Program, Driver: p.Driver, Source: p.Source, Target: p.Target, Bytes: p.Bytes, Blobs: p.Blobs, Seconds: p.Estimate.Seconds(),
		Layers: []plannedLayer{}, Images: []plannedImage{}, Containers: []plannedContainer{}, Problems: []problemInfo{}, Refusals: []string{},
	}
	for _, l := range p.Layers {
		info.Layers = append(info.Layers, plannedLayer{l.ID, l.Parent, l.Kind, l.ChainID, l.How, l.Bytes, l.Blob, l.There})
	}
	for _, i := range p.Images {
		info.Images = append(info.Images, plannedImage{i.ID, orEmpty(i.Names)})
	}
	for _, c := range p.Containers {
		info.Containers = append(info.Containers, plannedContainer{c.ID, c.Name, c.Image})
	}
	for _, problem := range p.Problems {
		info.Problems = append(info.Problems, problemInfo{problem.What, problem.ID, problem.Name, problem.Err.Error()})
	}
	for _, refusal := range p.Refusals {
		info.Refusals = append(info.Refusals, refusal.Error())
	}
	return info
}

// printMigration prints a plan for people.
func printMigration(w io.Writer, p *migrate.Plan) error {
	ways := make(map[migrate.How]int)
	there := 0
	for _, layer := range p.Layers {
		if layer.There {
			there++
		} else {
			ways[layer.How]++
		}
	}
	layers := fmt.Sprint(len(p.Layers))
	for _, how := range []migrate.How{migrate.Cloned, migrate.Reflinked, migrate.Copied} {
		if ways[how] > 0 {
			layers += fmt.Sprintf(", %d %s", ways[how], how)
		}
	}
	if there > 0 {
		layers += fmt.Sprintf(", %d there already", there)
	}
	rows := [][]string{
		{"to", p.Target}, {"layers", layers}, {"images", fmt.Sprint(len(p.Images))}, {"containers", fmt.Sprint(len(p.Containers))},
		{"to be copied", quota.FormatSize(uint64(p.Bytes))},
	}
	if p.Blobs > 0 {
		rows = append(rows, []string{"image blobs to write", "at most " + quota.FormatSize(uint64(p.Blobs))})
	}
	rows = append(rows, []string{"time", "up to " + (p.Estimate.Truncate(time.Second) + time.Second).String()})
	if err := table(w, []string{"from", fmt.Sprintf("%s (%s, %s)", p.Source, p.Program, p.Driver)}, rows); err != nil {
		return err
	}
	if len(p.Images)+len(p.Containers) == 0 {
		return nil
	}
	rows = nil
	for _, i := range p.Images {
		names := i.Names
		if len(names) == 0 {
			names = []string{""}
		}
		for _, name := range names {
			rows = append(rows, []string{"image", i.ID.Encoded()[:12], orDash(name)})
		}
	}
	for _, c := range p.Containers {
		rows = append(rows, []string{"container", layerstore.ShortName(c.ID), orDash(c.Name)})
	}
	fmt.Fprintln(w)
	return table(w, []string{"KIND", "ID", "NAME"}, rows)
}

// things shows work on a number of things on a terminal, and nothing elsewhere.
type things struct{ bars }

func (a *app) migrationProgress(cmd *cobra.Command) *things {
	return &things{bars{container: barsOn(cmd, a.quiet)}}
}

// Start implements migrate.Progress.
func (t *things) Start(what string, total int) migrate.Task {
	if t.container == nil {
		return nothing{}
	}
	b := &thingsBar{}
	b.shown = t.container.New(int64(total), mpb.BarFillerBuilder(mpb.BarStyle()),
		mpb.PrependDecorators(decor.Name(what, decor.WCSyncSpaceR), decor.CountersNoUnit("%d/%d", decor.WCSyncSpace)),
		mpb.AppendDecorators(decor.Elapsed(decor.ET_STYLE_MMSS), decor.Name(" "), decor.Any(b.text)))
	t.add(b)
	return b
}

// thingsBar is the bar of one kind of things. Its note is the name of the present thing.
type thingsBar struct {
	bar
	begun bool
}

// Next implements migrate.Task.
func (b *thingsBar) Next(name string) {
	b.mu.Lock()
	begun := b.begun
	b.begun, b.note = true, name
	b.mu.Unlock()
	if begun { // not under the lock: drawing the bar needs it, and Increment waits for that
		b.shown.Increment()
	}
}

// End implements migrate.Task.
func (b *thingsBar) End(note string) {
	if !b.end(note) {
		return
	}
	if note == "done" {
		b.shown.Increment()
	}
	b.finish()
}

// Next implements migrate.Task.
func (nothing) Next(string) {}
