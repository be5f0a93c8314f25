package main

import (
	"errors"
	"io"

	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/internal/outfile"
	"github.com/cowshed/cowshed/internal/stream"
	"github.com/cowshed/cowshed/internal/textdiff"
)

type diffFlags struct {
	compareFlags
	output   string
	compress string
	level    int
	text     bool
}

// textLimits bound diff --text.
var textLimits = textdiff.Limits{File: 1 << 20, Total: 16 << 20}

func newDiffCommand(a *app) *cobra.Command {
	f := diffFlags{}
	cmd := &cobra.Command{
		Use:   "diff NAME [PARENT]",
		Short: "Write the changes of a layer as a tar, or as text",
		Long: `Writes the changes of a layer since the layer that it was made from, or since PARENT, as a layer tar (OCI
image-spec, layer.md). LAYER@SNAPSHOT stands for a snapshot in both places. The tar goes to standard output or a file.
The same changes give the same bytes. With SOURCE_DATE_EPOCH in the environment no time in the tar is later than that.

With --text, the changes are shown for people instead. Files of UTF-8 of up to 1 MiB are shown as a unified diff, up to 16 MiB
in all. Others are named with their sizes, as are changes of modes, links and devices. Bytes that a terminal would act
on are written as \x1b, and paths with such bytes are quoted.`,
		Example: "  cowshed diff web -o web.tar.zst --compress zstd\n  cowshed diff web | tar -t\n  cowshed diff try-3 --text",
		Args:    usageArgs(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(args); err != nil {
				return err
			}
			if f.text && (cmd.Flags().Changed("compress") || cmd.Flags().Changed("level")) {
				return usagef("--text is not compressed")
			}
			if f.output == "" && !f.text && isTerminal(cmd.OutOrStdout()) {
				return usagef("a tar is not for the terminal: use -o FILE, or a pipe")
			}
			return a.withLayers(cmd, args, func(s *store) error { return s.diff(cmd, args, f) })
		},
		ValidArgsFunction: completeLayers(a, 2, true),
	}
	f.compareFlags.add(cmd)
	addContainers(a, cmd)
	flags := cmd.Flags()
	flags.StringVarP(&f.output, "output", "o", "", "file to write, which must not be there yet; - for standard output")
	flags.BoolVar(&f.text, "text", false, "show the changes as text")
	addCompression(cmd, &f.compress, &f.level, "none")
	return cmd
}

// addCompression adds the flags for the compression of the output.
func addCompression(cmd *cobra.Command, format *string, level *int, value string) {
	cmd.Flags().StringVar(format, "compress", value, "compression: none, gzip or zstd")
	cmd.Flags().IntVar(level, "level", 0, "level of the compression, 1 to 9 for gzip, 1 to 22 for zstd; 0 is the usual one")
	must(cmd.RegisterFlagCompletionFunc("compress", cobra.FixedCompletions([]string{"none", "gzip", "zstd"}, cobra.ShellCompDirectiveNoFileComp)))
}

func (s *store) diff(cmd *cobra.Command, args []string, f diffFlags) (err error) {
	format, err := layertar.ParseFormat(f.compress)
	if err != nil {
		return err
	}
	epoch, err := sourceDateEpoch()
	if err != nil {
		return err
	}
	c, err := s.compare(cmd, args, f.compareFlags)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()

	if f.text {
		return toOutput(cmd, f.output, func(w io.Writer) error {
			return textdiff.Write(cmd.Context(), w, c.Dir(), c.BaseDir(), c.Changes, textLimits)
		})
	}
	return toOutput(cmd, f.output, func(w io.Writer) error {
		compressor, err := layertar.Compress(w, format, f.level)
		if err != nil {
			return err
		}
		bars := s.progress(cmd)
		defer bars.wait()
		task := bars.Start(args[0], -1)
		err = c.WriteTar(cmd.Context(), stream.CountWrites(compressor, task.Add), epoch)
		task.End(outcome(err))
		return errors.Join(err, compressor.Close())
	})
}

// toOutput gives write the file to write, complete or not at all, a pipe, or standard output.
func toOutput(cmd *cobra.Command, path string, write func(io.Writer) error) (err error) {
	if path == "" || outfile.Stdout(path) {
		return write(cmd.OutOrStdout())
	}
	f, err := outfile.Create(cmd.Context(), path, false)
	if err != nil {
		return asNotFound(err)
	}
	if err := write(f); err != nil {
		return errors.Join(err, f.Discard())
	}
	return f.Commit()
}
