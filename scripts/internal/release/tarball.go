package main

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
)

// writeTarball writes an archive of the files below the prefix, for hosts that have neither dpkg nor rpm.
func (b build) writeTarball(p program) (err error) {
	name := fmt.Sprintf("cowshed-%s-linux-%s", packageVersion(p.version()), p.arch)
	file, err := os.Create(filepath.Join(b.dist(), name+".tar.gz"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	compressed, err := gzip.NewWriterLevel(file, gzip.BestCompression)
	if err != nil {
		return err
	}
	archive := tar.NewWriter(compressed)
	if err := addTree(archive, filepath.Join(b.tarball(p.arch), tarballPrefix), name, p); err != nil {
		return err
	}
	return errors.Join(archive.Close(), compressed.Close())
}

// addTree adds the files of a directory, in the order of their names, as root's and with the date of the commit.
func addTree(archive *tar.Writer, dir, name string, p program) error {
	return filepath.WalkDir(dir, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		below, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		header := &tar.Header{Name: path.Join(name, filepath.ToSlash(below)), Mode: int64(info.Mode().Perm()), ModTime: p.date, Format: tar.FormatUSTAR}
		switch {
		case info.IsDir():
			header.Typeflag, header.Name = tar.TypeDir, header.Name+"/"
			return archive.WriteHeader(header)
		case info.Mode().IsRegular():
			header.Typeflag, header.Size = tar.TypeReg, info.Size()
		default:
			return fmt.Errorf("%s is neither a file nor a directory", file)
		}
		if err := archive.WriteHeader(header); err != nil {
			return err
		}
		return copyFile(archive, file)
	})
}

func copyFile(w io.Writer, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return errors.Join(err, f.Close())
}
