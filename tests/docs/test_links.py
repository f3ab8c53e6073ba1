"""Links of the site are looked up when it is built; here on a site of two pages."""

import pytest

from docs.building.links import broken


@pytest.fixture
def site(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "index.html").write_text(
        '<p id="top"><a href="sub/page.html#first">a</a> <a href="#top">b</a> <a href="https://arxiv.org/abs/1?x=y">c</a>'
        '<img src="data:image/png;base64,AA"> <a href="mailto:a@b.org">d</a> <a href="two%20words.txt">e</a> <a href="">f</a>'
    )
    (tmp_path / "sub" / "page.html").write_text('<h1 id="first"></h1><a href="../index.html?v=1">home</a><a name="old"></a>')
    (tmp_path / "two words.txt").write_text("")
    (tmp_path / "_static").mkdir()
    (tmp_path / "_static" / "macros.html").write_text('<a href="{{ path }}">of a template</a>')
    return tmp_path


def test_a_sound_site_has_no_broken_link(site):
    assert broken(site) == []


@pytest.mark.parametrize(
    ("link", "why"),
    [
        ("sub/none.html", "leads to no file"),
        ("sub", "leads to no file"),
        ("sub/page.html#second", "leads to no such place on the page"),
        ("#second", "leads to no such place on the page"),
        ("https://arxiv/abs", "is no address of a page"),
        ("htps://arxiv.org", "is no address of a page"),
        ("https://arxiv.org/a b", "is no address of a page"),
        ("http://[half", "is no address: Invalid IPv6 URL"),
        ("../outside.txt", "leads out of the site"),
    ],
)
def test_what_leads_nowhere_is_named_with_its_page(site, link, why):
    outside = site.parent / "outside.txt"
    outside.write_text("")
    with (site / "index.html").open("a") as page:
        page.write(f'<a href="{link}">x</a>')
    assert broken(site) == [f"index.html: {link} {why}"]
    outside.unlink()
