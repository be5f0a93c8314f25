package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/internal/layerstore"
	"github.com/cowshed/cowshed/internal/outfile"
	"github.com/cowshed/cowshed/live"
)

type sendFlags struct {
	from        string
	withParents bool
	output      string
	json        bool
}

func (f sendFlags) toStdout() bool { return f.output == "" || outfile.Stdout(f.output) }

func newSendCommand(a *app) *cobra.Command {
	f := sendFlags{}
	cmd := &cobra.Command{
		Use:   "send LAYER",
		Short: "Write a layer as a stream for another store",
		Long: `Writes a layer, as it is now, as a stream of its filesystem with a header and a digest. cowshed receive makes a
layer of it, in a store on the same kind of filesystem. The layer may be in use. LAYER@SNAPSHOT stands for a
snapshot. The stream goes to standard output or a file.

Without flags the stream holds the whole layer, and needs no other. With --from, it holds the changes since BASE alone,
which the receiver has. BASE is a snapshot, or a layer from which others were made. On ZFS the layer was made from BASE.

With --with-parents, the layers from which the layer was made come before it, each with its own changes. The receiver
passes over those that it has. With --from too, the layer was made from BASE, directly or not.`,
		Example: `  cowshed send web --with-parents | ssh host cowshed receive
  cowshed send web@tuesday --from web@monday -o web.stream`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case f.toStdout() && isTerminal(cmd.OutOrStdout()):
				return usagef("a stream is not for the terminal: use -o FILE, or a pipe")
			case f.toStdout() && f.json:
				return usagef("--json needs -o FILE: the stream goes to standard output")
			}
			return a.with(cmd.Context(), func(s *store) error { return s.send(cmd, args[0], f) })
		},
		ValidArgsFunction: completeLayers(a, 1, true),
	}
	flags := cmd.Flags()
	flags.StringVar(&f.from, "from", "", "layer or snapshot `BASE` that the receiver has")
	flags.BoolVar(&f.withParents, "with-parents", false, "send the layers from which the layer was made too, those after BASE")
	flags.StringVarP(&f.output, "output", "o", "", "`FILE` to write, which must not be there yet; - for standard output")
	addJSON(cmd, &f.json)
	must(cmd.RegisterFlagCompletionFunc("from", completeLayers(a, -1, true)))
	return cmd
}

func (s *store) send(cmd *cobra.Command, name string, f sendFlags) error {
	v, err := s.Layer(cmd.Context(), name)
	if err != nil {
		return err
	}
	opts := live.SendOptions{WithParents: f.withParents}
	if f.from != "" {
		from, err := s.Layer(cmd.Context(), f.from)
		if err != nil {
			return fmt.Errorf("--from: %w", err)
		}
		opts.From = from.Name
	}
	opts.Image = s.ImageOf()
	bars := s.progress(cmd)
	defer bars.wait()
	opts.Progress = bars.ofLayer
	var sent []live.Sent
	write := func(w io.Writer) (err error) {
		sent, err = s.Live.Send(cmd.Context(), w, v.Name, opts)
		return err
	}
	if f.toStdout() {
		err = toStandardOutput(cmd.Context(), cmd.OutOrStdout(), write)
	} else {
		err = toOutput(cmd, f.output, write)
	}
	err = s.WhyNotSent(cmd.Context(), v, err)
	if err != nil || !f.json {
		return err
	}
	return printJSON(cmd, sent)
}

// ofLayer shows the progress of a layer.
func (b *bars) ofLayer(name string) (add func(int64), end func(error)) {
	task := b.Start(layerstore.ShortName(name), -1)
	return task.Add, func(err error) { task.End(outcome(err)) }
}
