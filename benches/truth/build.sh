#!/bin/sh
# Builds the programs whose allocation sites are scored, from Debian's source packages with -g:
#
#   benches/truth/build.sh DIR [PROGRAM…]
#   cargo xtask truth score benches/truth/git.tsv DIR/git-2.39.5/git …
#
# Needs deb-src lines in apt's sources, a compiler, tclsh (sqlite3), and cargo for those in Rust. The rows were
# drawn from the versions named here (Debian 12); line numbers of other versions differ.
set -e
dir=$1
shift
[ -n "$dir" ] || { echo "usage: build.sh DIR [PROGRAM…]" >&2; exit 2; }
mkdir -p "$dir"
cd "$dir"
flags="-g -O2 -fstack-protector-strong -Wformat -Werror=format-security"
all="bzip2 lua5.4 sqlite3 libzstd redis gnugo jq git tmux ninja-build cppcheck ripgrep mini-redis bash nginx gawk aria2 fd perl haproxy zsh less memcached groff hyperfine bore dnsmasq nano screen dash curl lighttpd vim busybox qpdf tokei mawk patch libxml2 wget openssh iproute2 e2fsprogs grep poppler sfz just htop rsync mosquitto tcpdump socat libarchive unbound hunspell exiv2 eza tar nasm tcc coreutils cpio indent cflow tinyproxy dropbear dhcpcd5 stunnel4 sudo gperf leveldb sd chrony units lsof mtools file xz-utils strace byacc gifsicle jimtcl squashfs-tools bird2 cscope mdadm tinc cmark mpg123 joe openntpd lzip gnuchess dust"

# The unpacked folder of a source package, Debian's patches left out.
fetch() {
    ls "$1"_*.orig.tar.* > /dev/null 2>&1 || apt-get source --download-only -qq "$1"
    for archive in "$1"_*.orig.tar.*; do
        case $archive in *.asc) ;; *) tar xf "$archive" ;; esac
    done
}

# The unpacked folder of a source package with Debian's patches, as its version is called.
patched() {
    ls -d "$1"-[0-9]* > /dev/null 2>&1 || apt-get source -qq "$1"
}
hardened="-Wdate-time -D_FORTIFY_SOURCE=2"
configure() {
    FORCE_UNSAFE_CONFIGURE=1 ./configure CFLAGS="$flags" CXXFLAGS="$flags" CPPFLAGS="$hardened" LDFLAGS="-Wl,-z,relro" "$@"
}

for program in ${*:-$all}; do
    echo "== $program"
    case $program in
    perl) fetch perl; (cd perl-5.36.0 && ./Configure -des -Doptimize="-g -O2" -Dusedevel && make perl) ;;
    bzip2) fetch bzip2; (cd bzip2-1.0.8 && make CFLAGS="$flags -D_FILE_OFFSET_BITS=64" bzip2) ;;
    lua5.4) fetch lua5.4; (cd lua-5.4.4/src && make CC="gcc -std=gnu99" MYCFLAGS="-g" linux) ;;
    sqlite3) fetch sqlite3; (cd sqlite3-3.40.1 && ./configure CFLAGS="$flags" && make sqlite3) ;;
    libzstd) fetch libzstd; (cd zstd-1.5.4 && make -C programs zstd-release CFLAGS="$flags" HAVE_LZMA=0 HAVE_LZ4=0) ;;
    redis) fetch redis; (cd redis-7.0.15 && make -C src redis-server MALLOC=libc CFLAGS="$flags" OPTIMIZATION=-O2) ;;
    gnugo) fetch gnugo; (cd gnugo-3.8 && ./configure && make CFLAGS="-g -O2 -fcommon") ;;
    jq) fetch jq; (cd jq-1.6 && autoreconf -fi && ./configure --disable-maintainer-mode CFLAGS="$flags" && make jq) ;;
    git) fetch git; (cd git-2.39.5 && make CFLAGS="$flags" NO_CURL=1 NO_TCLTK=1 NO_PERL=1 NO_PYTHON=1 NO_EXPAT=1 git) ;;
    tmux) fetch tmux; (cd tmux-3.3a && sh autogen.sh && ./configure CFLAGS="$flags" && make) ;;
    ninja-build) fetch ninja-build; (cd ninja-1.11.1 && CFLAGS="-g -O2" CXXFLAGS="-g -O2" python3 configure.py --bootstrap) ;;
    cppcheck) fetch cppcheck; (cd cppcheck-2.10 && make CXXFLAGS="$flags -DNDEBUG" cppcheck) ;;
    ripgrep) CARGO_PROFILE_RELEASE_DEBUG=2 cargo install --locked --root rg ripgrep --version 14.1.1 ;;
    bash) fetch bash; (cd bash-5.2.15 && ./configure CFLAGS="-g -O2" && make bash) ;;
    nginx) fetch nginx; (cd nginx-1.22.1 && ./configure --without-http_rewrite_module --with-cc-opt="-g -O2" && make) ;;
    gawk) fetch gawk; (cd gawk-5.2.1 && ./configure CFLAGS="$flags" && make gawk) ;;
    aria2) fetch aria2; (cd aria2-1.36.0 && ./configure --disable-bittorrent CXXFLAGS="-g -O2" CFLAGS="-g -O2" && make) ;;
    fd) CARGO_PROFILE_RELEASE_DEBUG=2 CARGO_PROFILE_RELEASE_STRIP=none cargo install --locked --root fd fd-find --version 10.5.0 ;;
    mini-redis) CARGO_PROFILE_RELEASE_DEBUG=2 cargo install --locked --root mini mini-redis --version 0.4.1 ;;
    haproxy) fetch haproxy; (cd haproxy-2.6.12 && make TARGET=linux-glibc CFLAGS="$flags") ;;
    zsh) fetch zsh; (cd zsh-5.9 && ./configure CFLAGS="$flags" --disable-dynamic --with-tcsetpgrp && make EXELDFLAGS= LIBLDFLAGS=) ;;
    less) fetch less; (cd less-590 && ./configure CFLAGS="$flags" && make) ;;
    memcached) fetch memcached; (cd memcached-1.6.18 && ./configure CFLAGS="$flags" && make memcached) ;;
    groff) fetch groff; (cd groff-1.22.4 && ./configure CFLAGS="-g -O2" CXXFLAGS="-g -O2" --without-x && make troff) ;;
    hyperfine) CARGO_PROFILE_RELEASE_DEBUG=2 CARGO_PROFILE_RELEASE_STRIP=none cargo install --locked --root hyperfine hyperfine --version 1.18.0 ;;
    bore) CARGO_PROFILE_RELEASE_DEBUG=2 CARGO_PROFILE_RELEASE_STRIP=none cargo install --locked --root bore bore-cli --version 0.5.0 ;;
    dnsmasq) fetch dnsmasq; (cd dnsmasq-2.90 && make CFLAGS="$flags") ;;
    nano) fetch nano; (cd nano-7.2 && ./configure CFLAGS="$flags" && make) ;;
    screen) fetch screen; (cd screen-4.9.0 && sh autogen.sh && ./configure CFLAGS="$flags" && make screen) ;;
    dash) fetch dash; (cd dash-0.5.12 && ./autogen.sh && ./configure CFLAGS="$flags" && make) ;;
    curl) fetch curl; (cd curl-7.88.1 && autoreconf -fi && ./configure --disable-shared --without-ssl CFLAGS="$flags" && make) ;;
    lighttpd) fetch lighttpd; (cd lighttpd-1.4.69 && autoreconf -fi && ./configure --without-pcre2 --without-zlib --without-bzip2 CFLAGS="$flags" && make) ;;
    vim) fetch vim; (cd vim-9.0.1378 && ./configure --with-features=tiny --disable-gui CFLAGS="$flags" && make) ;;
    busybox) fetch busybox; (cd busybox-1.35.0 && make defconfig && sed -i 's/^CONFIG_TC=y/# CONFIG_TC is not set/' .config && make CONFIG_EXTRA_CFLAGS="-g" SKIP_STRIP=y busybox_unstripped) ;;
    qpdf) fetch qpdf; (cd qpdf-11.3.0 && cmake -B build -DCMAKE_CXX_FLAGS="-g -O2" -DCMAKE_BUILD_TYPE=None -DBUILD_SHARED_LIBS=OFF && make -C build qpdf) ;;
    mawk) fetch mawk; (cd mawk-1.3.4-20200120 && ./configure CFLAGS="$flags" && make) ;;
    patch) fetch patch; (cd patch-2.7.6 && ./configure CFLAGS="$flags" && make) ;;
    libxml2) fetch libxml2; (cd libxml2-2.9.14 && autoreconf -fi && ./configure --disable-shared --without-python --without-icu CFLAGS="$flags" && make xmllint) ;;
    wget) fetch wget; (cd wget-1.21.3 && ./configure --with-ssl=openssl CFLAGS="$flags" && make -C lib && make -C src) ;;
    openssh) fetch openssh; (cd openssh-9.2p1 && ./configure CFLAGS="$flags" --without-hardening && make sshd) ;;
    iproute2) fetch iproute2; (cd iproute2-6.1.0 && ./configure && make CCOPTS="$flags" SUBDIRS="lib ip") ;;
    e2fsprogs) fetch e2fsprogs; (cd e2fsprogs-1.47.0 && ./configure CFLAGS="$flags" && make libs && make -C e2fsck) ;;
    grep) fetch grep; (cd grep-3.8 && ./configure CFLAGS="$flags" && make) ;;
    tokei) CARGO_PROFILE_RELEASE_DEBUG=2 CARGO_PROFILE_RELEASE_STRIP=none CARGO_PROFILE_RELEASE_LTO=off cargo install --locked --root tokei tokei --version 12.1.2 ;;
    poppler) fetch poppler; (cd poppler-22.12.0 && cmake -B build -DCMAKE_BUILD_TYPE=RelWithDebInfo -DBUILD_SHARED_LIBS=OFF -DENABLE_QT5=OFF -DENABLE_QT6=OFF -DENABLE_GLIB=OFF -DENABLE_CPP=OFF -DENABLE_BOOST=OFF -DENABLE_LIBOPENJPEG=unmaintained -DENABLE_CMS=none -DENABLE_LIBCURL=OFF -DBUILD_GTK_TESTS=OFF -DBUILD_CPP_TESTS=OFF -DENABLE_GPGME=OFF && make -C build pdftotext) ;;
    sfz) CARGO_PROFILE_RELEASE_DEBUG=2 CARGO_PROFILE_RELEASE_STRIP=none CARGO_PROFILE_RELEASE_LTO=off cargo install --locked --root sfz sfz --version 0.7.1 ;;
    just) CARGO_PROFILE_RELEASE_DEBUG=2 CARGO_PROFILE_RELEASE_STRIP=none CARGO_PROFILE_RELEASE_LTO=off cargo install --locked --root just just --version 1.25.0 ;;
    htop) fetch htop; (cd htop-3.2.2 && ./autogen.sh && ./configure CFLAGS="$flags" && make) ;;
    rsync) fetch rsync; (cd rsync-3.2.7 && ./configure --disable-xxhash --disable-zstd --disable-lz4 --disable-openssl --disable-md2man CFLAGS="$flags" && make rsync) ;;
    mosquitto) fetch mosquitto; (cd mosquitto-2.0.11 && make -C src WITH_TLS=no WITH_CJSON=no WITH_SYSTEMD=no WITH_DOCS=no CFLAGS="$flags") ;;
    tcpdump) fetch tcpdump; (cd tcpdump-4.99.3 && ./configure --without-crypto CFLAGS="$flags" && make) ;;
    socat) fetch socat; (cd socat-1.7.4.4 && ./configure --disable-openssl CFLAGS="$flags" && make) ;;
    libarchive) fetch libarchive; (cd libarchive-3.6.2 && ./configure --without-xml2 --without-openssl --without-expat CFLAGS="$flags" && make bsdtar) ;;
    unbound) fetch unbound; (cd unbound-1.17.1 && ./configure CFLAGS="$flags" && make unbound) ;;
    hunspell) fetch hunspell; (cd hunspell-1.7.1 && autoreconf -fi && ./configure --disable-shared CXXFLAGS="$flags" && make) ;;
    exiv2) fetch exiv2; (cd exiv2-0.27.6 && cmake -B b -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS="$flags" -DBUILD_SHARED_LIBS=OFF -DEXIV2_BUILD_SAMPLES=OFF && make -C b) ;;
    eza) CARGO_PROFILE_RELEASE_DEBUG=2 CARGO_PROFILE_RELEASE_STRIP=none CARGO_PROFILE_RELEASE_LTO=off cargo install --locked --root eza eza --version 0.18.24 ;;
    tar | indent | cflow | tinyproxy | gperf) patched "$program"; (cd "$program"-[0-9]* && configure && make) ;;
    coreutils) patched coreutils; (cd coreutils-9.1 && configure && make src/sort) ;;
    nasm) patched nasm; (cd nasm-2.16.01 && configure && make nasm) ;;
    tcc) patched tcc; (cd tcc-0.9.27* && ./configure --extra-cflags="$flags $hardened" && make tcc LDFLAGS=) ;;
    cpio) patched cpio; (cd cpio-2.13* && FORCE_UNSAFE_CONFIGURE=1 ./configure CFLAGS="$flags -fcommon" CPPFLAGS="$hardened" && make) ;;
    dropbear) patched dropbear; (cd dropbear-2022.83 && configure --disable-zlib && make dropbear) ;;
    dhcpcd5) patched dhcpcd5; (cd dhcpcd5-9.4.1 && ./configure && make CFLAGS="$flags $hardened -std=c99") ;;
    stunnel4) patched stunnel4; (cd stunnel4-5.68 && configure --disable-systemd && make) ;;
    sudo) patched sudo; (cd sudo-1.9.13p3 && configure --disable-shared --without-pam --disable-nls --enable-static-sudoers && make) ;;
    leveldb) patched leveldb; (cd leveldb-1.23 && cmake -B b -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS="$flags -D_FORTIFY_SOURCE=2" -DLEVELDB_BUILD_TESTS=OFF -DLEVELDB_BUILD_BENCHMARKS=OFF -DBUILD_SHARED_LIBS=OFF && make -C b leveldbutil) ;;
    sd) CARGO_PROFILE_RELEASE_DEBUG=2 CARGO_PROFILE_RELEASE_STRIP=none cargo install --locked --root sd sd --version 1.0.0 ;;
    chrony) patched chrony; (cd chrony-4.3 && CFLAGS="$flags $hardened" ./configure && make chronyd) ;;
    units) patched units; (cd units-2.22 && configure && make units) ;;
    lsof) patched lsof; (cd lsof-4.95.0 && ./Configure -n linux && make DEBUG="$flags $hardened") ;;
    mtools) patched mtools; (cd mtools-4.0.33* && configure && make mtools) ;;
    file) patched file; (cd file-5.44 && configure --disable-shared --disable-zlib --disable-bzlib --disable-xzlib && make -C src) ;;
    xz-utils) patched xz-utils; (cd xz-utils-5.4.1 && configure --disable-shared --disable-nls && make) ;;
    strace) patched strace; (cd strace-6.1 && configure --enable-mpers=no && make) ;;
    byacc) patched byacc; (cd byacc-2* && configure && make yacc) ;;
    gifsicle) patched gifsicle; (cd gifsicle-1.93 && configure --disable-gifview && make) ;;
    jimtcl) patched jimtcl; (cd jimtcl-0.81* && CFLAGS="$flags" ./configure && make jimsh) ;;
    squashfs-tools) patched squashfs-tools; (cd squashfs-tools-4.5.1/squashfs-tools && make mksquashfs EXTRA_CFLAGS=-g) ;;
    bird2) patched bird2; (cd bird2-2.0.12 && (test -x configure || autoreconf -fi) && configure --disable-client && make) ;;
    cscope) patched cscope; (cd cscope-15.9 && configure && make) ;;
    mdadm) patched mdadm; (cd mdadm-4.2 && make mdadm CWFLAGS= CXFLAGS="$flags $hardened -DNO_LIBUDEV" LDLIBS="-ldl -lpthread") ;;
    tinc) fetch tinc; (cd tinc-1.0.36 && configure --disable-lzo && make) ;;
    cmark) patched cmark; (cd cmark-0.30.2 && cmake -B b -DCMAKE_BUILD_TYPE=None -DCMAKE_C_FLAGS="$flags $hardened" -DCMARK_SHARED=OFF && make -C b) ;;
    mpg123) fetch mpg123; (cd mpg123-1.31.2 && configure --disable-shared --enable-static --disable-modules && make src/mpg123) ;;
    joe) fetch joe; (cd joe-4.6 && (test -x configure || ./autojoe) && configure && make) ;;
    openntpd) patched openntpd; (cd openntpd-6.2p3 && autoreconf -fi && configure && make) ;;
    lzip) patched lzip; (cd lzip-1.23 && ./configure CXXFLAGS="$flags" CPPFLAGS="$hardened" LDFLAGS="-Wl,-z,relro" && make) ;;
    gnuchess) patched gnuchess; (cd gnuchess-6.2.7 && configure && make) ;;
    dust) CARGO_PROFILE_RELEASE_DEBUG=2 CARGO_PROFILE_RELEASE_STRIP=none cargo install --locked --root dust du-dust --version 0.8.3 ;;
    binutils) apt-get source -qq binutils; (mkdir -p binutils-shared && cd binutils-shared && ../binutils-2.40/configure --enable-shared --disable-gold --disable-gprofng --disable-gdb --disable-nls --disable-werror --prefix="$PWD/installed" CFLAGS="-g -O2 -fstack-protector-strong" MAKEINFO=true && make MAKEINFO=true && make install MAKEINFO=true) ;;
    ffmpeg) apt-get source -qq ffmpeg; (cd ffmpeg-5.1.* && ./configure --enable-shared --disable-static --disable-doc --disable-stripping --disable-x86asm --disable-autodetect --disable-network --disable-everything --enable-decoder=pcm_s16le,flac,h264,png,rawvideo,mpeg4,aac,wrapped_avframe --enable-encoder=flac,png,rawvideo,pcm_s16le,mpeg4,aac,wrapped_avframe --enable-demuxer=wav,flac,matroska,rawvideo,image2,mov --enable-muxer=wav,flac,matroska,null,mp4,image2 --enable-protocol=file,pipe --enable-parser=flac,h264,mpeg4video,aac --enable-bsf=extract_extradata --enable-filter=testsrc,sine,scale,aresample,format,aformat,null,anull,buffer,abuffer,buffersink,abuffersink --enable-indev=lavfi --prefix="$PWD/installed" --extra-ldflags="-Wl,-rpath,$PWD/installed/lib" && make && make install) ;;
    *) echo "$program is not known: $all" >&2; exit 2 ;;
    esac
done
